"""A whole client died: that is nobody's attempt, the first two times."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.servers import OwnServer, server_of
from support.standin import Held, StandIn, running_stand_in
from support.system import client_is_there


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """A client that is told what to say."""
    async with running_stand_in() as running:
        yield running


async def _running(server: OwnServer, stand_in: StandIn, jobs: int) -> list[Held]:
    """The payloads of so many jobs, which run."""
    held = [await stand_in.takes() for _ in range(jobs)]
    for one in held:
        await stand_in.runs(one)
        await server.portal.reached(one.job, "Running")
    return held


async def _die(stand_in: StandIn, held: list[Held]) -> None:
    """Begin anew, and tell of each payload that it was lost."""
    stand_in.start += "1"
    await stand_in.cut()
    for one in held:
        await stand_in.ends(one, status="Failed", lost=True, reason="power cut")


async def test_several_lost_at_once_use_up_no_attempt(stand_in: StandIn, tmp_path: Path) -> None:
    """Twice; the third time it counts, and with one attempt allowed that is the end."""
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server:
        await client_is_there(server.portal)
        ids = [await server.portal.upload("true") for _ in range(3)]
        for attempt in (1, 2, 3):
            held = await _running(server, stand_in, len(ids))
            assert {(one.job, one.attempt) for one in held} == {(id, attempt) for id in ids}
            await _die(stand_in, held)
        for id in ids:
            record = await server.portal.ended(id)
            assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
            assert "power cut" in record["reason"]
        assert stand_in.submits.empty()


async def test_one_alone_counts(stand_in: StandIn, tmp_path: Path) -> None:
    """Nothing says that it was not the job that brought the machine down."""
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        await _die(stand_in, await _running(server, stand_in, 1))
        assert (await server.portal.ended(id))["status"] == "Failed"


async def test_several_under_the_same_start_count(stand_in: StandIn, tmp_path: Path) -> None:
    """The client itself lives: each of them was lost for a reason of its own."""
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server:
        await client_is_there(server.portal)
        ids = [await server.portal.upload("true") for _ in range(2)]
        for held in await _running(server, stand_in, 2):
            await stand_in.ends(held, status="Failed", lost=True, reason="no idea")
        for id in ids:
            assert (await server.portal.ended(id))["status"] == "Failed"


async def test_it_is_remembered_over_a_restart_of_the_server(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """Both machines lost their power: the client's payloads are spared all the same."""
    service = {"max_attempts": 1}
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        await client_is_there(server.portal)
        ids = [await server.portal.upload("true") for _ in range(2)]
        held = await _running(server, stand_in, 2)
    stand_in.start = "another"
    for one in held:
        one.state.update(status="Failed", lost=True)
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        for again in [await stand_in.takes() for _ in ids]:
            assert again.attempt == 2
