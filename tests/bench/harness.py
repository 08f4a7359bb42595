"""What all cases share: sizes, outcomes, the table, and where they work."""

import json
import os
import statistics
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator_shared import __version__


@dataclass(frozen=True)
class Outcome:
    """What a case has measured. `values` holds every figure by its name, with its unit in it."""

    figure: str
    floor: str
    ratio: str
    goal: str
    met: bool
    values: Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """One case: a name, a sentence on what is measured against what, and how.

    `run` gets an empty folder and the share of its full size that it is to have (1.0: all of it).
    """

    name: str
    what: str
    run: Callable[[Path, float], Awaitable[Outcome]]


def scaled(count: int, size: float, least: int = 2) -> int:
    """So many of something at this size, and a few at least."""
    return max(least, round(count * size))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(seconds: float) -> str:
    """As people read it."""
    return f"{seconds * 1000:.1f} ms"


median = statistics.median


def table(outcomes: Mapping[str, Outcome]) -> str:
    """The outcomes as Markdown."""
    rows = [
        ["case", "measured", "floor", "ratio", "goal", "met"],
        ["---"] * 6,
        *(
            [name, it.figure, it.floor, it.ratio, it.goal, "yes" if it.met else "**no**"]
            for name, it in outcomes.items()
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> dict[str, Any]:
    """On what it was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "version": __version__,
        "commit": commit or None,
    }


def write_results(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Keep every figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = {
        name: {"met": it.met, "goal": it.goal, "ratio": it.ratio, **it.values}
        for name, it in outcomes.items()
    }
    path.write_text(json.dumps({**machine(), "cases": cases}, indent=2) + "\n")
