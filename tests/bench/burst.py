"""1,000 jobs that take no time, against xargs over the same scripts."""

import asyncio
import subprocess
import time
from pathlib import Path

import aiohttp

from bench.harness import Case, Outcome, scaled
from bench.portal import send_all, upload_request
from support.portal import Portal
from support.processes import programs

JOBS = 1000
USERS = 20
CONNECTIONS = 16
SLOTS = 16
GOAL = 0.6
#: How long whoever follows the events waits before it asks for more (seconds).
PAUSE = 0.05


async def _all_ended(portal: Portal, jobs: int) -> None:
    """Follow the events until so many jobs are Completed."""
    after = ended = 0
    while ended < jobs:
        page = (await portal.get("/events", params={"after": after, "wait": 60, "limit": 500})).json
        after = page["next"]
        # As a portal does: that it asks after each commit is not what is measured.
        await asyncio.sleep(PAUSE)
        ends = [event["to"] for event in page["events"]]
        if wrong := {"Failed", "Killed", "Invalid"} & set(ends):
            raise RuntimeError(f"jobs have ended as {wrong}")
        ended += ends.count("Completed")


async def _by_the_system(root: Path, jobs: int) -> float:
    settings = {"SERVICE_EXAMPLE_RUNS_PER_USER": str(JOBS)}
    requests = [upload_request("/upload", b"true", n % USERS) for n in range(jobs - 1)]
    root.mkdir()
    async with (
        aiohttp.ClientSession() as session,
        programs(root, server=settings, client={"SLOTS": str(SLOTS)}) as (server, _),
    ):
        portal = Portal(server.url, session)
        await portal.ended(await portal.upload("true"))
        begin = time.perf_counter()
        ending = asyncio.create_task(_all_ended(portal, jobs))
        await send_all(server.port, requests, CONNECTIONS)
        await ending
        return time.perf_counter() - begin


def _by_xargs(root: Path, jobs: int) -> float:
    folders = [root / f"job{n}" for n in range(jobs)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run.sh").write_text("true")
    listed = "\n".join(map(str, folders)).encode()
    begin = time.perf_counter()
    command = ["xargs", "-P", str(SLOTS), "-I", "DIR", "bash", "-c", "cd DIR && bash run.sh"]
    subprocess.run(command, input=listed, check=True)
    return time.perf_counter() - begin


async def run(root: Path, size: float) -> Outcome:
    """The floor before and after, for the machine may change meanwhile."""
    jobs = scaled(JOBS, size, 20)
    floors = [await asyncio.to_thread(_by_xargs, root / "before", jobs)]
    passed = await _by_the_system(root / "system", jobs)
    floors.append(await asyncio.to_thread(_by_xargs, root / "after", jobs))
    rate, floor = jobs / passed, jobs / (sum(floors) / 2)
    return Outcome(
        figure=f"{rate:.0f} jobs/s",
        floor=f"{floor:.0f} jobs/s",
        ratio=f"{rate / floor:.2f}",
        goal=f"≥ {GOAL}",
        met=rate >= GOAL * floor,
        values={"jobs_per_s": rate, "floor_jobs_per_s": floor, "jobs": jobs},
    )


CASE = Case(
    "burst",
    "1,000 jobs of `true` from 20 users over 16 connections, 16 slots: from the first byte of the "
    "first upload to the last stored result. Floor: `xargs -P 16` of bash over the same scripts.",
    run,
)
