"""GET /events: every change of every job once, in order."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.errors import check_error
from support.gate import Gate
from support.lonely import Lonely, lonely_server, service
from support.portal import Portal
from support.system import System

FIELDS = {
    "seq", "at", "job", "ref", "user_id", "service", "from", "to", "attempt", "client", "fault",
    "reason",
}  # fmt: skip


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server with two services, whose clients are away."""
    async with lonely_server(tmp_path, service("dock"), service("fold")) as own:
        yield own


async def events(portal: Portal, **query: Any) -> list[dict[str, Any]]:
    """The changes of one call."""
    answer = await portal.get("/events", params=query)
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json["events"]
    assert answer.json["next"] >= (found[-1]["seq"] if found else query.get("after", 0))
    return found


async def all_events(portal: Portal, **query: Any) -> list[dict[str, Any]]:
    """The changes of all calls, as a portal goes through them."""
    found: list[dict[str, Any]] = []
    position = 0
    while True:
        answer = (await portal.get("/events", params={**query, "after": position})).json
        if not answer["events"]:
            return found
        found += answer["events"]
        position = answer["next"]


async def some_jobs(portal: Portal) -> None:
    """Five changes: jobs of two users and services; the first is killed, then Cleaned."""
    for user, name in ((1, "dock"), (2, "dock"), (1, "fold")):
        await portal.upload("true", user_id=user, service=name)
    await portal.request("DELETE", "/jobs/1")


async def test_an_event_says_what_became_of_which_job(system: System) -> None:
    """Each field, from the upload to the end."""
    failed = await system.portal.upload("exit 3", user_id=7, ref="mine")
    record = await system.portal.ended(failed)

    found = await events(system.portal)

    assert all(set(event) == FIELDS for event in found)
    times = [event["at"] for event in found]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at) for at in times)
    first, last = found[0], found[-1]
    assert (first["from"], first["to"], first["attempt"]) == (None, "Queued", 0)
    assert (first["client"], first["fault"], first["reason"]) == (None, None, None)
    assert {name: last[name] for name in FIELDS - {"seq", "at", "from"}} == {
        "job": failed, "ref": "mine", "user_id": 7, "service": "example", "to": "Failed",
        "attempt": 1, "client": system.at_client.base, "fault": "user",
        "reason": record["reason"],
    }  # fmt: skip
    assert last["at"] == record["ended_at"]


async def test_each_change_comes_once_and_in_order(system: System, tmp_path: Path) -> None:
    """What the histories of all jobs have, neither more nor less, by its number."""
    runs = ["true", "exit 1", "true", "true"]
    ids = [await system.portal.upload(run, user_id=n % 2) for n, run in enumerate(runs)]
    with contextlib.closing(Gate(tmp_path)) as gate:
        ids.append(await system.portal.upload(gate.wait))
        await gate.reached()
        await system.portal.request("DELETE", f"/jobs/{ids[-1]}")
    records = [await system.portal.ended(id) for id in ids]

    found = await all_events(system.portal, limit=3)

    numbers = [event["seq"] for event in found]
    assert numbers == sorted(set(numbers))
    for record in records:
        own = [event for event in found if event["job"] == record["id"]]
        assert [(e["seq"], e["to"], e["at"], e["reason"]) for e in own] == [
            (h["seq"], h["status"], h["at"], h["reason"]) for h in record["history"]
        ]
        assert [event["from"] for event in own] == [None, *(event["to"] for event in own[:-1])]
    assert len(found) == sum(record["version"] for record in records)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"user_id": 1}, [1, 3, 4, 5]),
        ({"user_id": 2}, [2]),
        ({"user_id": 3}, []),
        ({"service": "dock"}, [1, 2, 4, 5]),
        ({"service": "FOLD"}, [3]),
        ({"user_id": 1, "service": "dock"}, [1, 4, 5]),
        ({"after": 3}, [4, 5]),
        ({"after": 5}, []),
        ({"after": 999}, []),
        ({"after": 1, "service": "dock", "user_id": 1}, [4, 5]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 2, "after": 1, "user_id": 1}, [3, 4]),
        ({"limit": 500, "after": 0, "wait": 60}, [1, 2, 3, 4, 5]),
    ],
    ids=str,
)
async def test_filters_leave_what_fits(
    lonely: Lonely, query: dict[str, Any], expected: list[int]
) -> None:
    """By user and service, behind a number, so many at most."""
    await some_jobs(lonely.portal)

    assert [event["seq"] for event in await events(lonely.portal, **query)] == expected


@pytest.mark.parametrize("query", [{}, {"user_id": 1}, {"service": "fold"}], ids=str)
async def test_calls_follow_without_gap_or_repeat(lonely: Lonely, query: dict[str, Any]) -> None:
    """`next` of a call is `after` of the following."""
    await some_jobs(lonely.portal)
    expected = await events(lonely.portal, **query)

    for limit in (1, 2, 4, 5, 6):
        assert await all_events(lonely.portal, **query, limit=limit) == expected


async def test_next_goes_on_behind_what_was_filtered_out(lonely: Lonely) -> None:
    """So that a portal never goes through the same changes twice."""
    await some_jobs(lonely.portal)

    assert (await lonely.portal.get("/events?user_id=3")).json == {"events": [], "next": 5}


async def test_50_changes_come_unless_said_otherwise(tmp_path: Path) -> None:
    """And `next` is the last of them."""
    async with lonely_server(tmp_path) as lonely:
        for _ in range(51):
            await lonely.portal.upload("true")
        answer = (await lonely.portal.get("/events")).json

    assert (len(answer["events"]), answer["next"]) == (50, 50)


async def waiting(portal: Portal, query: str) -> "asyncio.Task[Any]":
    """A call that has arrived and waits."""
    call = asyncio.create_task(portal.get(f"/events?{query}"))
    for _ in range(3):
        await portal.get("/live")
    assert not call.done()
    return call


async def test_a_waiting_portal_hears_of_the_next_change(lonely: Lonely) -> None:
    """As soon as it has happened."""
    call = await waiting(lonely.portal, "wait=60")

    id = await lonely.portal.upload("true", service="dock")

    answer = (await call).json
    assert [(event["job"], event["to"]) for event in answer["events"]] == [(id, "Queued")]
    assert answer["next"] == 1


async def test_a_change_that_does_not_fit_wakes_nobody(lonely: Lonely) -> None:
    """The call goes on until one does."""
    call = await waiting(lonely.portal, "wait=60&user_id=2&service=fold")
    for user, name in ((1, "fold"), (2, "dock")):
        await lonely.portal.upload("true", user_id=user, service=name)
    await lonely.portal.get("/live")
    assert not call.done()

    id = await lonely.portal.upload("true", user_id=2, service="fold")

    assert [event["job"] for event in (await call).json["events"]] == [id]


async def test_a_portal_that_waited_in_vain_is_answered(lonely: Lonely) -> None:
    """With no change, when its time is up."""
    answer = await lonely.portal.get("/events?wait=0.01&after=7")

    assert (answer.status, answer.json) == (200, {"events": [], "next": 7})


async def test_no_change_is_missing_over_a_restart(tmp_path: Path) -> None:
    """The numbers go on, and what was is still told."""
    own = [service("dock"), service("fold")]
    async with lonely_server(tmp_path, *own) as lonely:
        await some_jobs(lonely.portal)
        before = await all_events(lonely.portal)
    async with lonely_server(tmp_path, *own) as lonely:
        await lonely.portal.upload("true", service="dock")
        await lonely.portal.post("/terminate/2")
        after = await all_events(lonely.portal, limit=2)

    assert after[: len(before)] == before
    assert [(e["seq"], e["job"], e["from"], e["to"]) for e in after[len(before) :]] == [
        (6, 4, None, "Queued"),
        (7, 2, "Queued", "Killed"),
    ]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("after=-1", "after"),
        ("after=x", "after"),
        (f"after={2**63}", "after"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("wait=-1", "wait"),
        ("wait=nan", "wait"),
        ("user_id=x", "user_id"),
        ("status=Failed", "status"),
        ("after=1&after=2", "after"),
    ],
)
async def test_a_parameter_that_cannot_be_used_is_named(
    lonely: Lonely, query: str, name: str
) -> None:
    """400, before anything is waited for."""
    answer = await lonely.portal.get(f"/events?{query}")

    check_error(answer, 400, f"The parameter '{name}' cannot be used: ")
