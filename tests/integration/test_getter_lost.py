"""A payload is lost only if its client says so: then another attempt, or the end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from orchestrator_server.tasks import getter
from support.servers import server_of
from support.standin import Held, StandIn, running_stand_in
from support.system import client_is_there


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that could not be fetched is tried again at once."""
    monkeypatch.setattr(getter, "AGAIN_FIRST", 0.01)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """A client that is told what to say."""
    async with running_stand_in() as running:
        yield running


async def test_a_lost_payload_is_run_again(stand_in: StandIn, tmp_path: Path) -> None:
    """Its client says so; the reason is in the history, and the next attempt counts."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.runs(held)
        await stand_in.ends(held, status="Failed", lost=True, reason="power cut")
        assert await stand_in.acknowledged.get() == (id, 1)

        again = await stand_in.takes()
        assert again.attempt == 2
        await stand_in.ends(again, status="Failed", exit_code=5)
        record = await server.portal.ended(id)
        assert (record["exit_code"], record["fault"]) == (5, None)
        reasons = [entry["reason"] for entry in record["history"]]
        assert "attempt 1 was lost: power cut" in reasons


@pytest.mark.parametrize("attempts", [1, 2])
async def test_with_no_attempt_left_it_has_failed(
    stand_in: StandIn, tmp_path: Path, attempts: int
) -> None:
    """MAX_ATTEMPTS counts payloads that were lost; the fault is the infrastructure's."""
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": attempts}) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        for attempt in range(1, attempts + 1):
            held = await stand_in.takes()
            assert held.attempt == attempt
            await stand_in.ends(held, status="Failed", lost=True, reason="power cut")
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert "power cut" in record["reason"]
        assert stand_in.submits.empty()


@pytest.mark.parametrize("state", ["Submitted", "Running"])
async def test_what_the_client_no_longer_knows_is_lost(
    stand_in: StandIn, tmp_path: Path, state: str
) -> None:
    """It does not list the payload, and asked for just this one it says 404."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        if state == "Running":
            await stand_in.runs(held)
        await server.portal.reached(id, state)
        stand_in.forget(held)
        await stand_in.cut()

        again = await stand_in.takes()
        assert (again.job, again.attempt) == (id, 2)


async def test_what_the_client_was_told_to_drop_is_lost(stand_in: StandIn, tmp_path: Path) -> None:
    """The server was restored from a backup, and does not know that it once had the result."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.runs(held)
        await server.portal.reached(id, "Running")
        stand_in.forget(held)
        stand_in.dropped.add(held.id)
        await stand_in.cut()

        again = await stand_in.takes()
        assert (again.job, again.attempt) == (id, 2)


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
async def test_an_attempt_that_had_ended_before_a_restore_is_lost(
    stand_in: StandIn, tmp_path: Path, size: int
) -> None:
    """The client remembers it when it is sent again: nothing of it is left, and none is used up."""
    stand_in.remembers = {1}
    service = {"max_attempts": 1}
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload({"run.sh": "true", "in": b"x" * size})
        assert await stand_in.submits.get() == (id, 1)
        again = await stand_in.takes()
        assert (again.job, again.attempt) == (id, 2)
        await stand_in.ends(again, b"zip", inline=True)
        assert (await server.portal.ended(id))["status"] == "Completed"


async def test_what_is_only_missing_from_the_list_is_not_lost(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """A reason to ask, never a proof: asked, the client still has it."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.runs(held)
        await server.portal.reached(id, "Running")
        stand_in.tells_held = False
        await stand_in.cut()
        assert await stand_in.asked.get() == held.id
        await stand_in.ends(held, status="Failed", exit_code=1)
        record = await server.portal.ended(id)
        assert (record["attempt"], record["exit_code"]) == (1, 1)


async def _not_found(_stand_in: StandIn, _request: web.Request, _held: Held) -> web.Response:
    return web.Response(status=404, headers={"X-Not-Ours": "yes"})


async def test_a_404_of_somebody_else_proves_nothing(stand_in: StandIn, tmp_path: Path) -> None:
    """A proxy answers in the client's place: the result is fetched once the client answers."""
    stand_in.faults = [_not_found]
    async with server_of(tmp_path, [stand_in.base], getter_interval=0.05) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, b"PK-" * 1000)
        await server.portal.reached(id, "Unknown")
        record = await server.portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 1)
        assert (await server.portal.get(f"/download/{id}")).body == b"PK-" * 1000


async def test_a_result_that_its_client_has_lost_is_made_again(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """The client itself says 404 when asked for it."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        stand_in.forget(held)
        await stand_in.ends(held, b"x" * 1000)
        again = await stand_in.takes()
        await stand_in.ends(again, b"y" * 1000)
        assert (await server.portal.ended(id))["attempt"] == 2
        assert (await server.portal.get(f"/download/{id}")).body == b"y" * 1000


async def test_another_client_at_the_address_means_the_former_is_lost(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """Its disk is gone: what it held is run again, once it had its time to answer elsewhere."""
    stand_in.beats = 0.05
    async with server_of(
        tmp_path, [stand_in.base], client_lost_after=1.0, getter_interval=0.05
    ) as server:
        await client_is_there(server.portal)
        ids = [await server.portal.upload("true") for _ in range(2)]
        for _ in ids:
            await stand_in.runs(await stand_in.takes())
        for id in ids:
            await server.portal.reached(id, "Running")
        stand_in.instance = "0" * 31 + "2"
        stand_in.held.clear()
        await stand_in.cut()

        again = [await stand_in.takes() for _ in ids]
        assert {(held.job, held.attempt) for held in again} == {(id, 2) for id in ids}
        reasons = [e["reason"] for e in (await server.portal.job(ids[0]))["history"]]
        assert any("another client answers at" in (reason or "") for reason in reasons)


async def test_a_client_that_moved_keeps_its_jobs(stand_in: StandIn, tmp_path: Path) -> None:
    """Two clients have swapped their addresses: a job belongs to an instance, wherever it is."""
    stand_in.beats = 0.05
    async with (
        running_stand_in(instance="0" * 31 + "2", beats=0.05) as other,
        server_of(
            tmp_path, [stand_in.base, other.base], client_lost_after=1.0, getter_interval=0.05
        ) as server,
    ):
        await client_is_there(server.portal, 2)
        ids = [await server.portal.upload("true") for _ in range(2)]
        first, second = await stand_in.takes(), await other.takes()
        for who, held in ((stand_in, first), (other, second)):
            await who.runs(held)
            await server.portal.reached(held.job, "Running")
        stand_in.instance, other.instance = other.instance, stand_in.instance
        stand_in.held, other.held = other.held, stand_in.held
        await stand_in.cut()
        await other.cut()

        await other.ends(first, status="Failed", exit_code=1)
        await stand_in.ends(second, status="Failed", exit_code=2)
        for id, code in ((first.job, 1), (second.job, 2)):
            record = await server.portal.ended(id)
            assert (record["exit_code"], record["attempt"]) == (code, 1)
        assert sorted(ids) == sorted([first.job, second.job])


async def test_a_lost_payload_of_an_unwanted_job_is_its_end(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """Somebody asked for its end: where it would become Queued it becomes Killed."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.runs(held)
        await server.portal.reached(id, "Running")
        answer = asyncio.create_task(server.portal.post(f"/terminate/{id}"))
        assert await stand_in.kills.get() == (id, 1)
        await stand_in.ends(held, status="Failed", lost=True)
        assert (await answer).json["status"] == "Killed"
        assert stand_in.submits.empty()
