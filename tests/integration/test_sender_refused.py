"""What becomes of a job that a client does not take, by what is known of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.clients import endpoint
from support.portal import Files, Portal
from support.servers import server_of
from support.standin import StandIn, running_stand_in
from support.system import client_config, client_is_there, running_client

#: One goes along on the stream, the other as a request of its own.
SMALL: Files = {"run.sh": "true"}
LARGE: Files = {"run.sh": "true", "large": b"x" * 100_000}
SIZES = pytest.mark.parametrize("files", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one; each further one is twice as long."""
    monkeypatch.setattr(endpoint, "BACKOFF_FIRST", 0.05)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """A client that is told what to say."""
    async with running_stand_in() as running:
        yield running


def _refuses(*, transient: bool, disk: bool = False) -> dict[str, Any]:
    return {"transient": transient, "disk": disk, "message": "not now, thank you"}


async def _statuses(portal: Portal, id: int) -> list[str]:
    return [entry["status"] for entry in (await portal.job(id))["history"]]


@SIZES
@pytest.mark.parametrize(("disk", "code"), [(True, "disk"), (False, "backoff")])
async def test_a_refusal_for_now_costs_no_attempt(
    stand_in: StandIn, tmp_path: Path, files: Files, disk: bool, code: str
) -> None:
    """However often; the job waits at the head of its queue, and goes once the client takes it."""
    stand_in.refusal = _refuses(transient=True, disk=disk)
    service = {"max_attempts": 1, "runs_per_user": 1}
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        portal = server.portal
        await client_is_there(portal)
        id = await portal.upload(files)
        for attempt in (1, 2, 3):
            assert await stand_in.submits.get() == (id, attempt)
            record = await portal.reached(id, "Queued")
            assert "not now, thank you" in record["message"]
        assert record["waiting"]["code"] == code
        younger = await portal.upload(SMALL)

        stand_in.refusal = None
        held = await stand_in.takes()
        assert (held.job, held.attempt) == (id, 4)
        await stand_in.runs(held)
        await portal.reached(id, "Running")
        await stand_in.ends(held, exit_code=1, status="Failed")
        assert (await portal.ended(id))["attempt"] == 4
        assert (await stand_in.takes()).job == younger
        taken = ["Submitted", "Running", "Failed"]
        assert await _statuses(portal, id) == [*["Queued", "Processing"] * 4, *taken]


@SIZES
async def test_a_refusal_for_good_is_the_end(
    stand_in: StandIn, tmp_path: Path, files: Files
) -> None:
    """With the client's own words; nothing is tried again."""
    stand_in.refusal = _refuses(transient=False)
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(files)
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert "not now, thank you" in record["reason"]
        assert await _statuses(server.portal, id) == ["Queued", "Processing", "Failed"]

        stand_in.refusal = None
        await server.portal.upload(SMALL)
        assert (await stand_in.submits.get())[0] == id
        assert (await stand_in.submits.get())[0] != id


async def test_a_client_that_refuses_leaves_its_jobs_to_others(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """The backoff is the client's, not the job's."""
    stand_in.refusal = _refuses(transient=True)
    stand_in.slots = 50
    async with (
        running_client(client_config(tmp_path / "client")) as client,
        server_of(tmp_path, [stand_in.base, str(client.make_url("")).rstrip("/")]) as server,
    ):
        portal = server.portal
        await client_is_there(portal, 2)
        for _ in range(5):
            record = await portal.ended(await portal.upload("true"))
            assert record["status"] == "Completed"
            assert record["client"] != stand_in.base


async def test_many_refusals_at_once_are_one(stand_in: StandIn, tmp_path: Path) -> None:
    """A client that refuses all that was under way is asked again as soon as after one refusal."""
    stand_in.answers = False
    stand_in.slots = 20
    async with server_of(tmp_path, [stand_in.base], service={"runs_per_user": 20}) as server:
        await client_is_there(server.portal)
        ids = [await server.portal.upload(SMALL) for _ in range(20)]
        under_way = [await stand_in.submits.get() for _ in ids]
        assert sorted(under_way) == [(id, 1) for id in ids]
        stand_in.held.clear()
        for id, attempt in under_way:
            refusal = {"job": id, "attempt": attempt, **_refuses(transient=True)}
            await stand_in.say("refused", refusal)

        # Counted one by one, the next round would be half a minute away.
        assert sorted([await stand_in.submits.get() for _ in ids]) == [(id, 2) for id in ids]


@SIZES
async def test_without_an_answer_the_same_attempt_goes_to_the_same_client(
    stand_in: StandIn, tmp_path: Path, files: Files
) -> None:
    """Nobody knows whether it was received: no other client may have it."""
    stand_in.answers = False
    async with server_of(tmp_path, [stand_in.base]) as server:
        portal = server.portal
        await client_is_there(portal)
        id = await portal.upload(files)
        assert await stand_in.submits.get() == (id, 1)
        stand_in.held.clear()
        await stand_in.cut()

        assert await stand_in.submits.get() == (id, 1)
        assert (await portal.job(id))["status"] == "Processing"
        stand_in.held.clear()
        stand_in.answers = True
        await stand_in.cut()

        assert await stand_in.submits.get() == (id, 1)
        assert (await portal.reached(id, "Submitted"))["attempt"] == 1


async def test_a_client_that_lists_an_attempt_has_it(stand_in: StandIn, tmp_path: Path) -> None:
    """Its answer got lost, but what it tells at the next stream is proof: it is not sent again."""
    stand_in.answers = False
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(SMALL)
        held = await stand_in.takes()
        await stand_in.cut()

        await server.portal.reached(id, "Submitted")
        await stand_in.ends(held, status="Failed", exit_code=3)
        assert (await server.portal.ended(id))["exit_code"] == 3
        assert stand_in.submits.empty()


async def test_a_wish_that_came_before_the_submit_had_an_outcome(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """The client does not list the job, so it was not received: it is Killed, not sent again."""
    stand_in.answers = False
    async with server_of(tmp_path, [stand_in.base]) as server:
        portal = server.portal
        await client_is_there(portal)
        id = await portal.upload(SMALL)
        await stand_in.submits.get()
        stand_in.held.clear()
        stand_in.lists = False
        await stand_in.cut()
        await stand_in.streams.get()
        wish = asyncio.create_task(portal.post(f"/terminate/{id}"))
        while not (await portal.job(id))["kill_requested"]:
            pass
        stand_in.lists = True
        await stand_in.cut()

        answer = await wish
        assert (answer.status, answer.json["status"]) == (200, "Killed")
        assert stand_in.submits.empty()


async def test_an_input_that_is_damaged_is_said_to_be_so(stand_in: StandIn, tmp_path: Path) -> None:
    """It is the server's fault, and no client gets half a job."""
    stand_in.refusal = _refuses(transient=True)
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(LARGE)
        await stand_in.submits.get()
        record = await server.portal.reached(id, "Queued")
        (Path(record["loc"]) / "input" / "large").write_bytes(b"short")

        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert "input damaged" in record["reason"]
