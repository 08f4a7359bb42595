"""Many jobs of many users at once: each ends once, with its own result."""

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp

from support.portal import Portal
from support.processes import programs

USERS = 20
JOBS = 200


async def test_a_burst_of_jobs_ends_whole(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """200 jobs of 20 users over two clients; nobody gets another's result."""
    starts = tmp_path / "starts"
    async with programs(tmp_path, client={"SLOTS": "8"}, clients=2) as (server, clients):
        portal = Portal(server.url, session)

        async def work(n: int) -> str:
            id = await portal.upload(
                f"echo {n} >> {starts}; echo {n} > out; exit $(({n} % 2))",
                user_id=n % USERS,
                ref=f"job {n}",
            )
            record = await portal.ended(id)
            assert record["ref"] == f"job {n}"
            assert record["exit_code"] == n % 2
            stored = await portal.get(f"/download_partial/{id}", params={"user_id": n % USERS})
            assert stored.zip.read("out") == f"{n}\n".encode()
            status: str = record["status"]
            return status

        ends = Counter(await asyncio.gather(*map(work, range(JOBS))))
        assert ends == {"Completed": JOBS // 2, "Failed": JOBS // 2}
        assert sorted(map(int, starts.read_text().split())) == list(range(JOBS))

        events: list[dict[str, str]] = []
        after = 0
        while page := (await portal.get(f"/events?after={after}&limit=500")).json["events"]:
            events += page
            after = page[-1]["seq"]
        counted = Counter(event["to"] for event in events if event["to"] in ends)
        assert counted == ends
        used = {event["client"] for event in events if event["to"] == "Completed"}
        assert used == {client.url for client in clients}
