"""Uploads per second, each durable when answered, against a handler with nothing behind it."""

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.harness import Case, Outcome, median, scaled
from bench.portal import send_all, upload_request
from support.processes import programs

UPLOADS = 3000
CONNECTIONS = 16
ROUNDS = 3
GOAL = 0.25
SCRIPT = b"#" * 294 + b"\ntrue\n"


async def _rate(port: int, path: str, uploads: int) -> float:
    """Uploads per second over kept connections."""
    requests = itertools.repeat(upload_request(path, SCRIPT), uploads)
    begin = time.perf_counter()
    await send_all(port, requests, CONNECTIONS)
    return uploads / (time.perf_counter() - begin)


@contextlib.asynccontextmanager
async def _floors(folder: Path) -> AsyncIterator[int]:
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.bare", str(folder)),
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def run(root: Path, size: float) -> Outcome:
    """In turns; the client is stopped, so that no job runs beside."""
    uploads = scaled(UPLOADS, size / ROUNDS, CONNECTIONS)
    rates: dict[str, list[float]] = {"/upload": [], "/bare": [], "/fsynced": []}
    async with programs(root) as (server, clients), _floors(root / "fsynced") as floors:
        await clients[0].stop()
        for path in rates:
            await _rate(server.port if path == "/upload" else floors, path, CONNECTIONS)
        for _ in range(ROUNDS):
            for path, found in rates.items():
                found.append(
                    await _rate(server.port if path == "/upload" else floors, path, uploads)
                )
    rate, bare, fsynced = (median(found) for found in rates.values())
    return Outcome(
        figure=f"{rate:.0f} uploads/s",
        floor=f"{bare:.0f}/s bare, {fsynced:.0f}/s with a file fsynced",
        ratio=f"{rate / bare:.2f}, {rate / fsynced:.2f}",
        goal=f"≥ {GOAL}, > 1",
        met=rate >= GOAL * bare and rate > fsynced,
        values={"uploads_per_s": rate, "bare_per_s": bare, "fsynced_per_s": fsynced},
    )


CASE = Case(
    "upload",
    "3,000 uploads of a 300-byte run.sh over 16 kept connections, each durable when answered. "
    "Floor: a handler that reads the body and answers JSON; beside it one that writes and fsyncs.",
    run,
)
