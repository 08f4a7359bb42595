"""kill -9 of either program while jobs wait, run and end: each ends once, with its own result."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from support.gate import Gate
from support.portal import Portal
from support.processes import Program, end_supervisor, programs

ENDS = {"Completed", "Failed", "Invalid", "Killed"}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where jobs wait."""
    made = Gate(tmp_path)
    yield made
    made.close()


async def _kill(program: Program) -> None:
    assert await program.stop(signal.SIGKILL) == -signal.SIGKILL


async def _ends_once(portal: Portal, ids: list[int]) -> None:
    """Every job has one end in the history of all changes."""
    events: list[dict[str, str]] = []
    after = 0
    while page := (await portal.get(f"/events?after={after}&limit=500")).json["events"]:
        events += page
        after = page[-1]["seq"]
    ends = Counter(event["job"] for event in events if event["to"] in ENDS)
    assert ends == Counter(ids)


@pytest.mark.parametrize("who", ["server", "client", "both"])
async def test_a_kill_loses_nothing_and_runs_nothing_twice(
    tmp_path: Path, gate: Gate, session: aiohttp.ClientSession, who: str
) -> None:
    """Two jobs run, others wait; one of the two ends while nobody looks."""
    starts = tmp_path / "starts"
    run = (
        f"echo $ORCH_JOB_ID-$ORCH_ATTEMPT >> {starts}; {gate.wait}; "
        "echo $ORCH_JOB_ID > out; exit $((ORCH_JOB_ID % 3))"
    )
    async with programs(tmp_path) as (server, (client,)):
        portal = Portal(server.url, session)
        ids = [await portal.upload({"run.sh": run, "in": f"{n}" * 10_000}) for n in range(6)]
        assert {await gate.reached() for _ in range(2)} == set(ids[:2])
        for id in ids[:2]:
            await portal.reached(id, "Running")

        killed = {"server": [server], "client": [client], "both": [server, client]}[who]
        for program in killed:
            await _kill(program)
        gate.open()
        for program in reversed(killed):
            await program.start()
        gate.open(len(ids))

        for id in ids:
            record = await portal.ended(id)
            assert record["exit_code"] == id % 3
            assert record["status"] == ("Failed" if id % 3 else "Completed")
            assert record["attempt"] == 1
            stored = await portal.get(f"/download_partial/{id}")
            assert stored.zip.read("out") == f"{id}\n".encode()
            assert stored.zip.read("in") == f"{ids.index(id)}".encode() * 10_000
        await _ends_once(portal, ids)
    assert sorted(starts.read_text().split()) == sorted(f"{id}-1" for id in ids)


async def test_what_really_died_is_run_again(
    tmp_path: Path, gate: Gate, session: aiohttp.ClientSession
) -> None:
    """The client, its supervisor and the job are gone, as after a power cut: another attempt."""
    starts = tmp_path / "starts"
    async with programs(tmp_path) as (server, (client,)):
        portal = Portal(server.url, session)
        id = await portal.upload(f"echo $ORCH_ATTEMPT >> {starts}; {gate.wait}; echo done")
        await gate.reached()
        await portal.reached(id, "Running")

        await _kill(client)
        await _kill_supervisor(client)
        await end_supervisor(client.folder / "client-data")
        await client.start()

        assert await gate.reached() == id
        gate.open()
        record = await portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 2)
        await _ends_once(portal, [id])
    assert starts.read_text() == "1\n2\n"


async def test_uploads_under_fire_are_there_once(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """What was answered before the kill is there after it; what was not may be tried again."""
    async with programs(tmp_path) as (server, _):
        portal = Portal(server.url, session)
        answered: list[int] = []

        async def upload(n: int) -> None:
            while True:
                try:
                    answer = await portal.try_upload(
                        {"run.sh": f"echo {n} > out"},
                        user_id=n,
                        headers={"Idempotency-Key": f"key {n}"},
                    )
                except aiohttp.ClientError:
                    continue
                assert answer.status in (200, 201)
                answered.append(answer.json["id"])
                if len(answered) == 15:
                    half.set()
                return

        half = asyncio.Event()
        uploads = [asyncio.create_task(upload(n)) for n in range(40)]
        await half.wait()
        await _kill(server)
        await server.start()
        await asyncio.gather(*uploads)

        assert len(set(answered)) == 40
        listed = (await portal.get("/jobs?limit=500")).json["jobs"]
        assert sorted(job["id"] for job in listed) == sorted(answered)
        for job in listed:
            assert (await portal.ended(job["id"]))["status"] == "Completed"
            assert (await portal.result(job["id"])).read("out") == f"{job['user_id']}\n".encode()
        await _ends_once(portal, answered)


async def _kill_supervisor(client: Program) -> None:
    """The process that holds the supervisor's lock."""
    holder = (client.folder / "client-data" / "supervisor.lock").stat()
    device = f"{os.major(holder.st_dev):02x}:{os.minor(holder.st_dev):02x}:{holder.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if device in fields:
            os.kill(int(fields[4]), signal.SIGKILL)
