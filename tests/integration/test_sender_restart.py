"""The server is started again: each job ends once, with its own result, wherever it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from orchestrator_server.keys import RECORDS, SENDER
from orchestrator_server.store.job import Job
from orchestrator_shared.status import Status
from support.gate import Gate
from support.servers import server_of
from support.standin import running_stand_in
from support.system import client_config, client_is_there, running_client


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where jobs wait."""
    made = Gate(tmp_path)
    yield made
    made.close()


async def test_jobs_in_every_state_outlive_a_restart(tmp_path: Path, gate: Gate) -> None:
    """Running, prepared at the client, and waiting at the server: each starts once."""
    starts = tmp_path / "starts"
    run = f"echo $ORCH_JOB_ID >> {starts}; {gate.wait}; echo $ORCH_JOB_ID > out"
    async with running_client(client_config(tmp_path / "client", slots=2)) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base], service={"runs_per_user": 3}) as server:
            await client_is_there(server.portal)
            ids = [await server.portal.upload(run) for _ in range(5)]
            assert {await gate.reached() for _ in range(2)} == set(ids[:2])
        async with server_of(tmp_path, [base], service={"runs_per_user": 3}) as server:
            for id in ids[:2]:
                assert (await server.portal.job(id))["status"] == "Running"
            gate.open(5)
            for id in ids:
                record = await server.portal.ended(id)
                assert (record["status"], record["attempt"]) == ("Completed", 1)
                assert (await server.portal.result(id)).read("out") == f"{id}\n".encode()
    assert sorted(starts.read_text().split()) == sorted(map(str, ids))


@pytest.mark.parametrize("size", [0, 200_000], ids=["small", "large"])
async def test_what_ended_while_the_server_was_away_arrives(
    tmp_path: Path, gate: Gate, size: int
) -> None:
    """With its result and its exit status, as soon as the server is back."""
    run = f"{gate.wait}; head -c {size} /dev/urandom > noise; echo done; {gate.wait}"
    async with running_client(client_config(tmp_path / "client")) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base]) as server:
            await client_is_there(server.portal)
            id = await server.portal.upload(run)
            await gate.reached()
            await server.portal.reached(id, "Running")
        gate.open(2)
        await gate.reached()
        async with server_of(tmp_path, [base]) as server:
            record = await server.portal.ended(id)
            assert (record["status"], record["exit_code"]) == ("Completed", 0)
            result = await server.portal.result(id)
            assert result.read(".orchestrator/stdout.log") == b"done\n"
            assert len(result.read("noise")) == size


@pytest.mark.parametrize("size", [0, 100_000], ids=["small", "large"])
async def test_a_submit_under_way_is_sent_again(tmp_path: Path, size: int) -> None:
    """The server ended before it had an answer: the same attempt goes to the same client."""
    async with running_stand_in(answers=False) as stand_in:
        async with server_of(tmp_path, [stand_in.base]) as server:
            await client_is_there(server.portal)
            id = await server.portal.upload({"run.sh": "true", "filler": b"x" * size})
            assert await stand_in.submits.get() == (id, 1)
        stand_in.held.clear()
        while not stand_in.submits.empty():
            stand_in.submits.get_nowait()
        stand_in.answers = True
        async with server_of(tmp_path, [stand_in.base]) as server:
            assert (await server.portal.job(id))["status"] == "Processing"
            assert await stand_in.submits.get() == (id, 1)
            assert (await server.portal.reached(id, "Submitted"))["attempt"] == 1


async def test_an_end_that_was_stored_but_not_acknowledged_is_acknowledged(tmp_path: Path) -> None:
    """The client still lists the payload: it is told to drop it, and nothing else changes."""
    async with running_stand_in() as stand_in:
        async with server_of(tmp_path, [stand_in.base]) as server:
            await client_is_there(server.portal)
            id = await server.portal.upload("true")
            held = await stand_in.takes()
            await stand_in.ends(held, exit_code=4, status="Failed")
            before = await server.portal.ended(id)
            assert await stand_in.acknowledged.get() == (id, 1)
        stand_in.held[held.id] = held
        async with server_of(tmp_path, [stand_in.base]) as server:
            assert await stand_in.acknowledged.get() == (id, 1)
            assert await server.portal.job(id) == before


async def test_a_message_of_an_older_attempt_changes_nothing(tmp_path: Path) -> None:
    """Late, repeated or out of order: the payload is dropped, the job goes on."""
    async with (
        running_stand_in() as stand_in,
        server_of(tmp_path, [stand_in.base]) as server,
    ):
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        old = await stand_in.takes()
        await stand_in.ends(old, status="Failed", lost=True, reason="power cut")
        assert await stand_in.acknowledged.get() == (id, 1)
        new = await stand_in.takes()
        await stand_in.runs(new)
        before = await server.portal.reached(id, "Running")
        assert before["attempt"] == 2

        stand_in.held[old.id] = old
        await stand_in.ends(old, exit_code=0, lost=False)
        assert await stand_in.acknowledged.get() == (id, 1)
        await stand_in.runs(new)
        old.state["status"] = "Running"
        await stand_in.ends(new, status="Failed", exit_code=7, lost=False)
        record = await server.portal.ended(id)
        assert (record["exit_code"], record["attempt"]) == (7, 2)
        assert record["version"] == before["version"] + 1


async def test_a_payload_of_a_job_that_is_not_known_is_left_alone(tmp_path: Path) -> None:
    """Neither killed nor acknowledged: it may be a restored database that has forgotten it."""
    async with (
        running_stand_in() as stand_in,
        server_of(tmp_path, [stand_in.base]) as server,
    ):
        await client_is_there(server.portal)
        stranger = stand_in.holds(job=99, attempt=1)
        await stand_in.ends(stranger, exit_code=0)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, exit_code=1, status="Failed")
        await server.portal.ended(id)
        assert await stand_in.acknowledged.get() == (id, 1)
        assert stand_in.acknowledged.empty()
        assert (await server.portal.get("/jobs/99")).status == 404


async def test_what_has_ended_since_it_was_looked_up_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client has dropped it, and tells of it no more: another submit would begin it again."""
    async with running_stand_in() as stand_in, server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        records, sender = server.app[RECORDS], server.app[SENDER]
        before = replace(await records.get(id), status=Status.PROCESSING)
        await stand_in.ends(held, b"result", inline=True)
        assert await stand_in.acknowledged.get() == (id, 1)

        async def looked_up(_instance: str) -> list[Job]:
            return [before]

        monkeypatch.setattr(records, "processing_at", looked_up)
        await sender._send_again()

        assert sender._sending == {}
