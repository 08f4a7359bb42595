"""Two thousand callers, each of which waits for one job."""

import asyncio
import time
from datetime import datetime
from pathlib import Path

import aiohttp

from bench.harness import Case, Outcome, milliseconds, quantile, scaled
from support.portal import Portal
from support.processes import programs

CALLERS = 2000
PER_SECOND = 100
GOAL = 0.1


async def _wait(portal: Portal, id: int) -> float:
    """From the stored end to the answer (seconds)."""
    while (record := await portal.job(id, wait=60))["ended_at"] is None:
        pass
    return time.time() - datetime.fromisoformat(record["ended_at"]).timestamp()


async def run(root: Path, size: float) -> Outcome:
    """Jobs end because they are terminated while Queued: nothing but the waiting is measured."""
    callers = scaled(CALLERS, size, 20)
    settings = {"SERVICE_EXAMPLE_MAX_RUNS": "1"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        programs(root, server=settings) as (server, _),
    ):
        portal = Portal(server.url, session)
        holds = await portal.upload("exec sleep 600")
        await portal.reached(holds, "Running")
        ids = [await portal.upload("true") for _ in range(callers)]
        waiting = [asyncio.create_task(_wait(portal, id)) for id in ids]
        # Each of them has been heard before anything ends.
        await portal.get("/live")
        for id in ids:
            await asyncio.gather(portal.post(f"/terminate/{id}"), asyncio.sleep(1 / PER_SECOND))
        delays = await asyncio.gather(*waiting)
        await portal.post(f"/terminate/{holds}")
    p95 = quantile(delays, 0.95)
    return Outcome(
        figure=f"{milliseconds(p95)} (p95) of {len(delays)}",
        floor="-",
        ratio="-",
        goal=f"≤ {milliseconds(GOAL)}, none missed",
        met=p95 <= GOAL and len(delays) == callers,
        values={"p95_s": p95, "callers": callers},
    )


CASE = Case(
    "watchers",
    "2,000 callers wait for a job each, 100 jobs end every second: from the stored end to the "
    "answer.",
    run,
)
