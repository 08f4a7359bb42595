"""`waiting` in the record: what stands in the way of a Queued job, in numbers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.gate import Gate
from support.lonely import lonely_server, service
from support.portal import Portal
from support.servers import server_of
from support.standin import running_stand_in
from support.system import client_is_there, running_system


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A place where run.sh waits."""
    with contextlib.closing(Gate(tmp_path)) as own:
        yield own


async def occupied(portal: Portal, gate: Gate, *users: int) -> None:
    """Jobs of these users that run until the test ends."""
    for user in users:
        id = await portal.upload(gate.wait, user_id=user)
        await gate.reached()
        await portal.reached(id, "Running")


async def waiting(portal: Portal, id: int) -> Any:
    """What a job waits for."""
    record = await portal.job(id)
    assert record["status"] == "Queued"
    return record["waiting"]


async def waits_for(portal: Portal, id: int, code: str) -> Any:
    """What a job waits for, once it is this."""
    while True:
        record = await portal.job(id)
        if record["waiting"] is not None and record["waiting"]["code"] == code:
            return record["waiting"]


async def test_a_job_waits_for_a_client_that_is_away(tmp_path: Path) -> None:
    """`no_client`: there is none to count slots of."""
    async with lonely_server(tmp_path) as lonely:
        id = await lonely.portal.upload("true")

        assert await waiting(lonely.portal, id) == {
            "code": "no_client", "ahead": 0, "users": 1, "limit": 0, "used": 0,
        }  # fmt: skip


async def test_the_queue_is_counted_by_user_and_service(tmp_path: Path) -> None:
    """`ahead`: older Queued jobs of the same user and service; `users`: whoever has some there."""
    async with lonely_server(tmp_path, service("example"), service("other")) as lonely:
        portal = lonely.portal
        jobs = [(1, "example"), (2, "example"), (1, "other"), (1, "example"), (3, "other"),
                (1, "example")]  # fmt: skip
        ids = [await portal.upload("true", user_id=user, service=name) for user, name in jobs]
        counts = [await waiting(portal, id) for id in ids]
        assert [(w["ahead"], w["users"]) for w in counts] == [
            (0, 2), (0, 2), (0, 2), (1, 2), (0, 2), (2, 2),
        ]  # fmt: skip

        await portal.post(f"/terminate/{ids[0]}")
        await portal.post(f"/terminate/{ids[1]}")

        last = await waiting(portal, ids[-1])
        assert (last["ahead"], last["users"]) == (1, 1)


async def test_a_job_waits_for_its_users_quota(tmp_path: Path, gate: Gate) -> None:
    """`user_quota`: as many of the user's jobs are active as RUNS_PER_USER allows."""
    async with running_system(
        tmp_path, client={"slots": 4}, service={"runs_per_user": 2}
    ) as system:
        await occupied(system.portal, gate, 1, 1, 2)
        ids = [await system.portal.upload("true", user_id=1) for _ in range(2)]

        assert [await waiting(system.portal, id) for id in ids] == [
            {"code": "user_quota", "ahead": ahead, "users": 1, "limit": 2, "used": 2}
            for ahead in (0, 1)
        ]


@pytest.mark.parametrize(("max_runs", "slots"), [(2, 5), (None, 2)])
async def test_a_job_waits_for_the_services_quota(
    tmp_path: Path, gate: Gate, max_runs: int | None, slots: int
) -> None:
    """`service_quota`: MAX_RUNS are active, of all users; without one, all slots of its clients."""
    async with running_system(
        tmp_path, client={"slots": slots}, service={"max_runs": max_runs}
    ) as system:
        await occupied(system.portal, gate, 1, 2)
        id = await system.portal.upload("true", user_id=3)

        assert await waiting(system.portal, id) == {
            "code": "service_quota", "ahead": 0, "users": 1, "limit": 2, "used": 2,
        }  # fmt: skip


async def test_a_job_waits_for_a_free_slot(tmp_path: Path, gate: Gate) -> None:
    """`no_slot`: its quotas would let it go, but its clients have nothing free."""
    async with running_system(tmp_path, client={"slots": 1}, service={"max_runs": 10}) as system:
        await occupied(system.portal, gate, 1)
        id = await system.portal.upload("true", user_id=2)

        assert await waiting(system.portal, id) == {
            "code": "no_slot", "ahead": 0, "users": 1, "limit": 1, "used": 1,
        }  # fmt: skip


async def test_a_job_waits_for_room_on_its_clients_disk(tmp_path: Path) -> None:
    """`disk`: the client refused it for that, and is asked again in a while."""
    async with running_system(tmp_path, client={"min_free_disk": 2**62}) as system:
        id = await system.portal.upload("true")

        found = await waits_for(system.portal, id, "disk")

        assert (found["ahead"], found["users"]) == (0, 1)
        record = await system.portal.job(id)
        assert "MIN_FREE_DISK" in record["reason"]


async def test_a_job_waits_for_a_client_that_takes_nothing(tmp_path: Path) -> None:
    """`backoff`: the client refused it for another reason that will pass."""
    refusal = {"transient": True, "disk": False, "message": "not now"}
    async with (
        running_stand_in(refusal=refusal) as stand_in,
        server_of(tmp_path, [stand_in.base]) as server,
    ):
        await client_is_there(server.portal)
        id = await server.portal.upload("true")

        found = await waits_for(server.portal, id, "backoff")

        assert (found["ahead"], found["users"]) == (0, 1)
        stand_in.refusal = None
        await server.portal.reached(id, "Submitted")


async def test_a_job_that_goes_waits_for_nothing(tmp_path: Path, gate: Gate) -> None:
    """null from Processing on, in a list too."""
    async with running_system(tmp_path) as system:
        await occupied(system.portal, gate, 1)

        (record,) = (await system.portal.get("/jobs")).json["jobs"]

        assert (record["status"], record["waiting"]) == ("Running", None)
