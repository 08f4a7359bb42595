"""GET /clients and GET /services: who is there, what waits, and why."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.api.parameters import WAIT_MOST
from orchestrator_server.clients.directory import NoSuchClient, SeveralClients
from orchestrator_server.config import ClientAddress, Service
from orchestrator_server.keys import OPERATOR
from orchestrator_server.tasks import getter
from orchestrator_shared.portal import ClientsSchema, ServicesSchema
from support.servers import OwnServer, server_of, server_with
from support.standin import StandIn, running_stand_in
from support.system import client_is_there


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """A client that is told what to say."""
    async with running_stand_in(beats=0.05) as running:
        yield running


async def _rows(server: OwnServer) -> list[dict[str, Any]]:
    answer = await server.portal.get("/clients")
    assert answer.status == 200
    assert ClientsSchema().validate(answer.json) == {}
    rows: list[dict[str, Any]] = answer.json["clients"]
    return rows


async def _one(server: OwnServer) -> dict[str, Any]:
    (row,) = await _rows(server)
    return row


async def _reaches(server: OwnServer, state: str) -> dict[str, Any]:
    """Wait until its one client is in this state: it brings no event."""
    async with asyncio.timeout(WAIT_MOST):
        while (row := await _one(server))["state"] != state:
            await asyncio.sleep(0.01)
    return row


async def test_a_client_that_is_up(stand_in: StandIn, tmp_path: Path) -> None:
    """Who it is, how many slots it has, and how many are in use."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        await server.portal.reached(id, "Submitted")
        await stand_in.say("heartbeat", {"others": 1, "stuck": 1, "cpu_load": 12.5})

        async with asyncio.timeout(WAIT_MOST):
            while (row := await _one(server))["stuck"] != 1:
                await asyncio.sleep(0.01)
        assert row.pop("last_seen") is not None
        assert row == {
            "address": stand_in.base,
            "instance": stand_in.instance,
            "service": None,
            "version": "0",
            "slots": 4,
            "slots_in_use": 2,
            "stuck": 1,
            "unknown_payloads": 0,
            "load": 12.5,
            "state": "up",
            "why": "",
        }


async def test_a_client_that_nobody_has_met(tmp_path: Path) -> None:
    """It is lost, and why is said."""
    async with server_of(tmp_path, ["http://127.0.0.1:9"]) as server:
        async with asyncio.timeout(WAIT_MOST):
            while "Cannot connect" not in (row := await _one(server))["why"]:
                await asyncio.sleep(0.01)
        assert (row["state"], row["instance"], row["last_seen"]) == ("lost", None, None)


@pytest.mark.parametrize(
    ("state", "why"), [("leaving", "it stops"), ("out", "the databases are not mounted")]
)
async def test_a_client_that_takes_no_work_gets_none(
    stand_in: StandIn, tmp_path: Path, state: str, why: str
) -> None:
    """It says so itself; a job waits, and goes as soon as it takes some again."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        stand_in.beats = None
        await stand_in.say("heartbeat", {"others": 0, "cpu_load": 0, "state": state, "why": why})
        assert (await _reaches(server, state))["why"] == why
        id = await server.portal.upload("true")
        record = await server.portal.job(id)
        assert (record["status"], record["waiting"]["code"]) == ("Queued", "no_client")
        assert stand_in.submits.empty()

        await stand_in.say("heartbeat", {"others": 0, "cpu_load": 0})
        assert await stand_in.submits.get() == (id, 1)


async def test_a_client_that_is_away_is_lost(stand_in: StandIn, tmp_path: Path) -> None:
    """With what is known of it from before, over a restart of the server too."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        await stand_in.vanish()
        row = await _reaches(server, "lost")
    async with server_of(tmp_path, [stand_in.base]) as server:
        again = await _one(server)
    for found in (row, again):
        assert (found["instance"], found["slots"]) == (stand_in.instance, 4)
        assert found["why"].startswith("silent for ")


async def test_a_client_of_another_service_gets_no_other_jobs(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """It says which service it runs; both are named in the settings by mistake."""
    stand_in.service = "other"
    address = (ClientAddress.from_base(stand_in.base),)
    named = {name: Service(name, address) for name in ("example", "other")}
    async with server_with(tmp_path, named) as server:
        await client_is_there(server.portal)
        waits = await server.portal.upload("true")
        goes = await server.portal.upload("true", service="other")
        assert await stand_in.submits.get() == (goes, 1)
        record = await server.portal.job(waits)
        assert (record["status"], record["waiting"]["code"]) == ("Queued", "no_client")
        assert (await _one(server))["service"] == "other"


async def test_a_drained_client_gets_nothing_new(stand_in: StandIn, tmp_path: Path) -> None:
    """It is asked for what it has not begun; that stays over restarts, until it is resumed."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        prepared, running = [await server.portal.upload("true") for _ in range(2)]
        first, second = await stand_in.takes(), await stand_in.takes()
        await stand_in.runs(second)
        await server.portal.reached(running, "Running")

        said = await server.app[OPERATOR].drain(stand_in.base)
        assert "2 jobs are there yet" in said
        assert await stand_in.orders.get() == "hand_back"
        await stand_in.ends(first, status="Failed", lost=True, handed_back=True,
                            fault="infrastructure", exit_code=None, reason="drained")  # fmt: skip
        assert await stand_in.acknowledged.get() == (prepared, 1)
        record = await server.portal.reached(prepared, "Queued")
        assert record["history"][-1]["reason"] == "handed back: drained"
        await stand_in.ends(second, b"x" * 10, inline=True)
        assert (await server.portal.ended(running))["status"] == "Completed"
        assert (await _one(server))["state"] == "draining"
    async with server_of(tmp_path, [stand_in.base]) as server:
        assert await stand_in.orders.get() == "hand_back"
        assert (await _one(server))["state"] == "draining"
        assert stand_in.submits.empty()
        await server.app[OPERATOR].resume(stand_in.instance[-3:].rjust(32, "0"))
        assert await stand_in.submits.get() == (prepared, 2)
        assert (await _one(server))["state"] == "up"


async def test_handing_back_uses_no_attempt_up(stand_in: StandIn, tmp_path: Path) -> None:
    """However often."""
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        for attempt in (1, 2, 3):
            held = await stand_in.takes()
            assert held.attempt == attempt
            await stand_in.runs(held)
            await stand_in.ends(held, status="Failed", lost=True, handed_back=True,
                                fault="infrastructure", exit_code=None)  # fmt: skip
        await stand_in.ends(await stand_in.takes(), b"zip", inline=True)
        assert (await server.portal.ended(id))["attempt"] == 4


async def test_a_name_that_fits_no_client_is_refused(stand_in: StandIn, tmp_path: Path) -> None:
    """Or more than one."""
    async with (
        running_stand_in(instance="0" * 31 + "2") as other,
        server_of(tmp_path, [stand_in.base, other.base]) as server,
    ):
        await client_is_there(server.portal, 2)
        with pytest.raises(NoSuchClient, match="There is no client 'nobody'"):
            await server.app[OPERATOR].drain("nobody")
        with pytest.raises(SeveralClients, match="name one of them"):
            await server.app[OPERATOR].drain("0000")


async def test_all_payloads_are_compared_now_and_then(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was lost without a word is asked for, and run again."""
    monkeypatch.setattr(getter, "LIST_INTERVAL", 0.05)
    async with server_of(tmp_path, [stand_in.base], getter_interval=0.02) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.runs(held)
        await server.portal.reached(id, "Running")
        assert await stand_in.orders.get() == "list"
        stand_in.forget(held)
        assert await stand_in.submits.get() == (id, 2)


async def test_a_service_tells_its_jobs_and_limits(stand_in: StandIn, tmp_path: Path) -> None:
    """Also how long its oldest Queued job has waited."""
    service = {"runs_per_user": 1, "max_runtime": 60.0}
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        await client_is_there(server.portal)
        ids = [await server.portal.upload("true") for _ in range(3)]
        await server.portal.reached(ids[0], "Submitted")

        answer = await server.portal.get("/services")
        assert ServicesSchema().validate(answer.json) == {}
        (row,) = answer.json["services"]
        oldest = await server.portal.job(ids[1])
        assert row.pop("oldest_queued_s") >= 0
        assert row == {
            "service": "example",
            "jobs": {"Queued": 2, "Submitted": 1},
            "oldest_queued": oldest["created_at"],
            "clients": 1,
            "clients_up": 1,
            "slots": 4,
            "runs_per_user": 1,
            "max_runs": 4,
            "max_attempts": 3,
            "max_runtime": 60.0,
            "max_age": 172800.0,
        }
        await server.portal.post(f"/terminate/{ids[1]}")
        await server.portal.post(f"/terminate/{ids[2]}")
        (row,) = (await server.portal.get("/services")).json["services"]
        assert row["jobs"] == {"Submitted": 1, "Killed": 2}
        assert (row["oldest_queued"], row["oldest_queued_s"]) == (None, None)
