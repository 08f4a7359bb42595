"""Quotas and slots with real clients: looked up in the history of every change."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from support.gate import Gate
from support.portal import Portal
from support.servers import server_of
from support.system import client_config, client_is_there, running_client

ACTIVE = {"Processing", "Submitted", "Running", "Unknown"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestServer]:
    """A client with more slots than any quota here."""
    async with running_client(client_config(tmp_path / "client", slots=50)) as running:
        yield running


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where jobs wait."""
    made = Gate(tmp_path)
    yield made
    made.close()


def _base(client: TestServer) -> str:
    return str(client.make_url("")).rstrip("/")


async def _events(portal: Portal) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    after = 0
    while True:
        page = (await portal.get("/events", params={"after": after, "limit": 500})).json
        events += page["events"]
        if page["next"] == after:
            return events
        after = page["next"]


def _most(events: list[dict[str, Any]], *names: str) -> Counter[tuple[Any, ...]]:
    """The most jobs that were active at once, for each value of these fields."""
    now: Counter[tuple[Any, ...]] = Counter()
    most: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        key = tuple(event[name] for name in names)
        now[key] += (event["to"] in ACTIVE) - (event["from"] in ACTIVE)
        most[key] = max(most[key], now[key])
    assert not +now
    return most


async def test_limits_hold_at_every_point_of_history(client: TestServer, tmp_path: Path) -> None:
    """250 jobs of one user and one each of ten others, which do not wait for them."""
    limits = {"runs_per_user": 5, "max_runs": 10}
    async with server_of(tmp_path, [_base(client)], service=limits) as server:
        portal = server.portal
        await client_is_there(portal)
        await asyncio.gather(*(portal.upload("true", user_id=1) for _ in range(250)))
        others = [await portal.upload("true", user_id=user) for user in range(2, 12)]
        records = await asyncio.gather(*(portal.ended(id) for id in range(1, 261)))
        events = await _events(portal)

    assert {record["status"] for record in records} == {"Completed"}
    assert max(_most(events, "user_id", "service").values()) == 5
    assert max(_most(events, "service").values()) <= 10
    went = [event["job"] for event in events if event["to"] == "Processing"]
    assert len(went) == 260
    # Between the upload of each of the ten and its turn, the crowd got no more than a round.
    queued = {event["job"]: event["seq"] for event in events if event["to"] == "Queued"}
    turns = {event["job"]: event["seq"] for event in events if event["to"] == "Processing"}
    for id in others:
        passed = [j for j in turns if queued[id] < turns[j] < turns[id] and j not in others]
        assert len(passed) <= 5


async def test_clients_of_a_service_share_the_work(gate: Gate, tmp_path: Path) -> None:
    """No client gets more than it has slots; what waits, waits at the server."""
    async with (
        running_client(client_config(tmp_path / "one", slots=2)) as one,
        running_client(client_config(tmp_path / "two", slots=3)) as two,
        server_of(tmp_path, [_base(one), _base(two)], service={"runs_per_user": 100}) as server,
    ):
        portal = server.portal
        await client_is_there(portal, 2)
        ids = [await portal.upload(gate.wait) for _ in range(12)]
        running = {await gate.reached() for _ in range(5)}

        at = Counter([(await portal.job(id))["client"] for id in running])
        assert at == {_base(one): 2, _base(two): 3}
        waiting = await portal.job(max(ids))
        assert waiting["status"] == "Queued"
        assert waiting["waiting"]["code"] == "service_quota"
        assert (waiting["waiting"]["limit"], waiting["waiting"]["used"]) == (5, 5)

        gate.open(12)
        for id in ids:
            assert (await portal.ended(id))["status"] == "Completed"
        most = _most(await _events(portal), "client")
        assert (most[(_base(one),)], most[(_base(two),)]) == (2, 3)


async def test_a_job_is_given_to_whichever_client_has_room(gate: Gate, tmp_path: Path) -> None:
    """A client that is full holds up nothing while another is free."""
    async with (
        running_client(client_config(tmp_path / "one", slots=1)) as one,
        running_client(client_config(tmp_path / "two", slots=1)) as two,
        server_of(tmp_path, [_base(one), _base(two)]) as server,
    ):
        portal = server.portal
        await client_is_there(portal, 2)
        long = await portal.upload(gate.wait)
        await gate.reached()
        full = (await portal.job(long))["client"]
        for _ in range(3):
            record = await portal.ended(await portal.upload("true"))
            assert record["client"] not in (full, None)
        gate.open()
        await portal.ended(long)


async def test_two_services_share_the_slots_of_a_client(gate: Gate, tmp_path: Path) -> None:
    """What one service runs there is not offered to the other; a freed slot is, at once."""
    async with (
        running_client(client_config(tmp_path / "shared", slots=2)) as shared,
        server_of(
            tmp_path, {"x": [_base(shared)], "y": [_base(shared)]}, sender_interval=3600.0
        ) as server,
    ):
        portal = server.portal
        await client_is_there(portal)
        first = [await portal.upload(gate.wait, service="x") for _ in range(2)]
        assert {await gate.reached() for _ in first} == set(first)
        other = await portal.upload("true", service="y")
        waiting = (await portal.job(other))["waiting"]
        assert waiting["code"] == "no_slot"

        gate.open()
        assert (await portal.ended(other))["status"] == "Completed"
        gate.open()
        for id in first:
            await portal.ended(id)
        most = _most(await _events(portal), "client")
    assert max(most.values()) == 2
