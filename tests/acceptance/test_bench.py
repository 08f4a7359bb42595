"""A smoke of the bench: every case still runs, and says what it measures. No figure counts here."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from bench.__main__ import CASES

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("case", CASES)
async def test_a_case_of_the_bench_runs(case: str, tmp_path: Path) -> None:
    """At a hundredth of its size; it keeps its figures, and its table has a row."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", case, "--size", "0.01"),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, said = await process.communicate()
    # 1: a goal is not met, which says nothing at this size.
    assert process.returncode in (0, 1), said.decode()
    assert f"| {case} |" in printed.decode(), said.decode()
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert list(results["cases"]) == [case]
    assert results["cores"] > 0
