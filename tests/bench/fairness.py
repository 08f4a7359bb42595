"""One user with a queue as long as you like, and fifty with one job each."""

import asyncio
from pathlib import Path

import aiohttp

from bench.harness import Case, Outcome, scaled
from support.portal import Portal
from support.processes import programs

JOBS = 10_000
OTHERS = 50
SLOTS = 4
CONNECTIONS = 16


async def _uploads(portal: Portal, users: list[int]) -> None:
    while users:
        await portal.upload("true", user_id=users.pop())


async def run(root: Path, size: float) -> Outcome:
    """Decided by the order of events, not by time."""
    jobs, others = scaled(JOBS, size, 40), scaled(OTHERS, size, 3)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS + 1)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        programs(root, client={"SLOTS": str(SLOTS)}) as (server, _),
    ):
        portal = Portal(server.url, session)
        many = [0] * jobs
        await asyncio.gather(*(_uploads(portal, many) for _ in range(CONNECTIONS)))
        overtaken = []
        for user in range(1, others + 1):
            id = await portal.upload("true", user_id=user)
            await portal.ended(id)
            overtaken.append(await _sent_before(portal, id))
    most = max(overtaken)
    return Outcome(
        figure=f"at most {most} jobs of the first user went before",
        floor="-",
        ratio="-",
        goal=f"≤ {SLOTS + 1}",
        met=most <= SLOTS + 1,
        values={"overtaken_most": most, "jobs": jobs, "others": others},
    )


async def _sent_before(portal: Portal, id: int) -> int:
    """How many jobs of the first user were sent between the upload of this job and its start."""
    history = (await portal.job(id))["history"]
    begin, end = history[0]["seq"], history[1]["seq"]
    sent, after = 0, begin
    while after < end:
        query = {"after": after, "limit": 500, "user_id": 0}
        page = (await portal.get("/events", params=query)).json
        sent += sum(e["to"] == "Processing" and e["seq"] < end for e in page["events"])
        after = page["next"]
    return sent


CASE = Case(
    "fairness",
    "One user has 10,000 jobs queued, 50 others come with one each: how many of the first user's "
    "are sent between another's upload and start.",
    run,
)
