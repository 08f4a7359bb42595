"""GET /jobs/<id>?wait=: a portal hears of a change without asking again and again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_server.api.parameters import read_wait
from support.errors import check_error
from support.gate import Gate
from support.lonely import Lonely, lonely_server
from support.portal import Answer, Portal
from support.states import job_in
from support.system import System, running_server, server_config


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server whose client is away."""
    async with lonely_server(tmp_path) as own:
        yield own


async def asked(portal: Portal, path: str) -> "asyncio.Task[Answer]":
    """A request that has arrived and waits."""
    waiting = asyncio.create_task(portal.get(path))
    # On connections of their own: by the time that one is answered the other has been read.
    for _ in range(3):
        await portal.get("/live")
    assert not waiting.done()
    return waiting


async def test_a_waiting_portal_is_answered_at_the_end(system: System, tmp_path: Path) -> None:
    """Not before, whatever happens on the way, and with the record of that end."""
    with contextlib.closing(Gate(tmp_path)) as gate:
        id = await system.portal.upload(gate.wait)
        waiting = await asked(system.portal, f"/jobs/{id}?wait=60")
        await gate.reached()
        await system.portal.reached(id, "Running")
        assert not waiting.done()
        gate.open()

        record = (await waiting).json

    assert record["status"] == "Completed"
    assert record["history"][-1]["status"] == "Completed"


async def test_many_wait_for_one_job(lonely: Lonely) -> None:
    """Each of them is answered."""
    id = await lonely.portal.upload("true")
    waiting = [await asked(lonely.portal, f"/jobs/{id}?wait=60") for _ in range(3)]

    await lonely.portal.post(f"/terminate/{id}")

    assert [(await one).json["status"] for one in waiting] == ["Killed"] * 3


@pytest.mark.parametrize("status", ["Completed", "Failed", "Invalid", "Killed", "Cleaned"])
async def test_an_ended_job_is_waited_for_no_more(tmp_path: Path, status: str) -> None:
    """Answered at once, however long the portal would wait."""
    async with job_in(tmp_path, status) as job:
        assert (await job.portal.job(job.id, wait=1_000_000))["status"] == status


@pytest.mark.parametrize("query", ["wait=0", "wait=0.01", "", "seen=1&wait=0.01", "seen=1"])
async def test_a_portal_is_answered_when_its_time_is_up(lonely: Lonely, query: str) -> None:
    """With the record as it is then."""
    id = await lonely.portal.upload("true")

    assert (await lonely.portal.get(f"/jobs/{id}?{query}")).json["status"] == "Queued"


def test_nobody_waits_for_more_than_a_minute() -> None:
    """A longer time counts as 60 s; none as not at all."""
    waits = [read_wait(query) for query in ({}, {"wait": 0.5}, {"wait": 60.5}, {"wait": 1e300})]

    assert waits == [0.0, 0.5, 60.0, 60.0]


async def test_a_portal_can_wait_for_the_next_change(lonely: Lonely) -> None:
    """With the version that it has seen: also for a change that is not the end."""
    id = await lonely.portal.upload("true")
    await lonely.portal.post(f"/terminate/{id}")
    seen = (await lonely.portal.job(id))["version"]
    waiting = await asked(lonely.portal, f"/jobs/{id}?wait=60&seen={seen}")

    await lonely.portal.request("DELETE", f"/jobs/{id}")

    record = (await waiting).json
    assert (record["status"], record["version"]) == ("Cleaned", seen + 1)


@pytest.mark.parametrize("seen", [0, 2, 99])
async def test_a_change_that_was_missed_is_answered_at_once(lonely: Lonely, seen: int) -> None:
    """Another version than the one seen, be it lower or higher, is news."""
    id = await lonely.portal.upload("true")

    assert (await lonely.portal.job(id, wait=60, seen=seen))["version"] == 1


async def test_a_change_of_another_job_wakes_nobody(lonely: Lonely) -> None:
    """A portal hears of the job that it asked for."""
    first, second = [await lonely.portal.upload("true") for _ in range(2)]
    waiting = await asked(lonely.portal, f"/jobs/{first}?wait=60&seen=1")

    await lonely.portal.post(f"/terminate/{second}")
    await lonely.portal.get("/live")
    assert not waiting.done()
    await lonely.portal.post(f"/terminate/{first}")

    assert (await waiting).json["id"] == first


async def test_whoever_waits_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    """With the state as it is: of a job, and of the changes."""
    config = server_config(tmp_path / "server")
    async with lonely_server(tmp_path) as lonely:
        id = await lonely.portal.upload("true")
    async with aiohttp.ClientSession() as session:
        async with running_server(config) as server:
            portal = Portal(server.make_url(""), session)
            job = await asked(portal, f"/jobs/{id}?wait=60")
            events = await asked(portal, "/events?after=1&wait=60")
        answers = [(await job).json, (await events).json]

    assert answers[0]["status"] == "Queued"
    assert answers[1] == {"events": [], "next": 1}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("wait=-1", "wait"),
        ("wait=abc", "wait"),
        ("wait=", "wait"),
        ("wait=nan", "wait"),
        ("wait=inf", "wait"),
        ("seen=-1", "seen"),
        ("seen=1.5", "seen"),
        ("seen=x&wait=1", "seen"),
        (f"seen={2**63}", "seen"),
        ("user_id=abc", "user_id"),
        ("user_id=1_0", "user_id"),
        ("user_id=%EF%BC%91", "user_id"),
        (f"user_id={2**63}", "user_id"),
        ("user_id=1&user_id=1", "user_id"),
        ("waits=1", "waits"),
    ],
)
async def test_a_parameter_that_cannot_be_used_is_named(
    lonely: Lonely, query: str, name: str
) -> None:
    """400, before anything is waited for."""
    id = await lonely.portal.upload("true")

    answer = await lonely.portal.get(f"/jobs/{id}?{query}")

    check_error(answer, 400, f"The parameter '{name}' cannot be used: ")
    assert ".." not in answer.json["message"]
