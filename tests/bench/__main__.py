"""PYTHONPATH=tests .venv/bin/python -m bench [CASE …] [--size SHARE]"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import burst, depth, fairness, idle, large, latency, upload, watchers
from bench.harness import Outcome, machine, table, write_results

MODULES = (latency, burst, upload, depth, large, watchers, idle, fairness)
CASES = {module.CASE.name: module.CASE for module in MODULES}
RESULTS = Path("bench/results.json")


def main() -> int:
    """Run the cases, print the table, keep the figures; 1 where a goal is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--size", type=float, default=1.0, help="the share of the full size")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    outcomes: dict[str, Outcome] = {}
    root = Path(tempfile.mkdtemp(prefix="bench-"))
    if (chattr := shutil.which("chattr")) is not None:
        # Where much was removed lately ext4 makes files slowly, for minutes. With this attribute
        # it puts each folder in here somewhere else (chattr(1), 'T'); other file systems refuse.
        subprocess.run([chattr, "+T", str(root)], check=False, stderr=subprocess.DEVNULL)
    try:
        for name in given.cases or CASES:
            print(f"{name}: {CASES[name].what}", file=sys.stderr, flush=True)
            folder = root / name
            folder.mkdir()
            outcomes[name] = asyncio.run(CASES[name].run(folder, given.size))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(table(outcomes))
    print(f"\n{machine()}")
    write_results(RESULTS, outcomes)
    return 0 if all(outcome.met for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
