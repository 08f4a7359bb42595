"""What both programs take of a CPU while there is nothing to do, and while 1,000 jobs run."""

import asyncio
import os
from pathlib import Path

import aiohttp

from bench.harness import Case, Outcome, scaled
from support.portal import Portal
from support.processes import Program, programs

RUNNING = 1000
SECONDS = 30.0
GOALS = (0.005, 0.03)
TICK = 1 / os.sysconf("SC_CLK_TCK")


def _cpu(pid: int) -> float:
    """The CPU time of a process (seconds): fields 14 and 15 of /proc/<pid>/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


async def _share(programs: list[Program], seconds: float) -> float:
    before = sum(_cpu(program.pid) for program in programs)
    await asyncio.sleep(seconds)
    return (sum(_cpu(program.pid) for program in programs) - before) / seconds


async def run(root: Path, size: float) -> Outcome:
    """Jobs that run do nothing but sleep."""
    jobs, seconds = scaled(RUNNING, size, 10), max(1.0, SECONDS * size)
    settings = {"SERVICE_EXAMPLE_RUNS_PER_USER": str(jobs)}
    async with (
        aiohttp.ClientSession() as session,
        programs(root, server=settings, client={"SLOTS": str(jobs)}) as (server, clients),
    ):
        portal, both = Portal(server.url, session), [server, *clients]
        await portal.ended(await portal.upload("true"))
        await asyncio.sleep(min(3.0, seconds))
        idle = await _share(both, seconds)
        ids = [await portal.upload("exec sleep 600") for _ in range(jobs)]
        for id in ids:
            await portal.reached(id, "Running")
        await asyncio.sleep(min(5.0, seconds))
        busy = await _share(both, seconds)
        for id in ids:
            await portal.post(f"/terminate/{id}")
    return Outcome(
        figure=f"{100 * idle:.2f} %, with {jobs} running jobs {100 * busy:.2f} %",
        floor="-",
        ratio="-",
        goal=f"≤ {100 * GOALS[0]:g} %, ≤ {100 * GOALS[1]:g} %",
        met=idle <= GOALS[0] and busy <= GOALS[1],
        values={"idle_cores": idle, "busy_cores": busy, "jobs": jobs, "seconds": seconds},
    )


CASE = Case(
    "idle",
    "CPU of both programs over 30 s, as a share of one core: with nothing to do, and with 1,000 "
    "jobs that run.",
    run,
)
