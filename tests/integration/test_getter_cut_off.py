"""Server and client are cut off from each other: jobs go on, and the server catches up."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator_client import streams
from support.gate import Gate
from support.portal import Portal
from support.relay import Relay, running_relay
from support.servers import server_of
from support.standin import running_stand_in
from support.system import client_config, client_is_there, running_client

#: CLIENT_LOST_AFTER here (seconds).
LOST_AFTER = 0.5


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where jobs wait."""
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Portal, Relay]]:
    """A server that soon takes a client for lost, and the wire between the two."""
    monkeypatch.setattr(streams, "HEARTBEAT_INTERVAL", LOST_AFTER / 10)
    async with (
        running_client(client_config(tmp_path / "client")) as client,
        running_relay(str(client.make_url(""))) as relay,
        server_of(
            tmp_path, [relay.base], client_lost_after=LOST_AFTER, getter_interval=0.05
        ) as server,
    ):
        await client_is_there(server.portal)
        yield server.portal, relay


async def test_a_job_runs_on_while_its_client_is_cut_off(
    wire: tuple[Portal, Relay], gate: Gate
) -> None:
    """Unknown after CLIENT_LOST_AFTER, then Running again, with the attempt it had."""
    portal, relay = wire
    id = await portal.upload(f"{gate.wait}; echo done")
    running = await portal.reached(id, "Running")

    await relay.cut()
    unknown = await portal.reached(id, "Unknown")
    assert "does not answer" in unknown["reason"]
    assert (await portal.get(f"/download/{id}")).status == 202
    assert (await portal.get(f"/download_partial/{id}")).status == 502
    await relay.mend()
    back = await portal.reached(id, "Running")
    assert back["started_at"] == running["started_at"]
    assert back["reason"] is None

    gate.open()
    record = await portal.ended(id)
    assert (record["status"], record["attempt"]) == ("Completed", 1)
    assert [entry["status"] for entry in record["history"]][-4:] == [
        "Running",
        "Unknown",
        "Running",
        "Completed",
    ]


@pytest.mark.parametrize("size", [0, 300_000], ids=["small", "large"])
async def test_a_job_that_ended_meanwhile_arrives_with_its_result(
    wire: tuple[Portal, Relay], gate: Gate, size: int
) -> None:
    """Also where the result was ready long before anybody could fetch it."""
    portal, relay = wire
    id = await portal.upload(f"{gate.wait}; head -c {size} /dev/urandom > noise; {gate.wait}")
    await gate.reached()
    await portal.reached(id, "Running")
    await relay.cut()
    await portal.reached(id, "Unknown")
    gate.open(2)
    await gate.reached()
    await relay.mend()

    assert (await portal.ended(id))["status"] == "Completed"
    assert len((await portal.result(id)).read("noise")) == size


async def test_a_short_cut_changes_no_state(tmp_path: Path, gate: Gate) -> None:
    """Whoever is back before CLIENT_LOST_AFTER was never lost."""
    async with (
        running_client(client_config(tmp_path / "client")) as client,
        running_relay(str(client.make_url(""))) as relay,
        server_of(tmp_path, [relay.base], getter_interval=0.05) as server,
    ):
        await client_is_there(server.portal)
        id = await server.portal.upload(gate.wait)
        before = await server.portal.reached(id, "Running")
        await relay.cut()
        await relay.mend()
        await client_is_there(server.portal)
        gate.open()
        record = await server.portal.ended(id)
        assert record["version"] == before["version"] + 1


async def test_a_wish_while_the_client_is_away_is_kept(
    wire: tuple[Portal, Relay], gate: Gate
) -> None:
    """And granted at its return."""
    portal, relay = wire
    id = await portal.upload(gate.wait)
    await portal.reached(id, "Running")
    await relay.cut()
    await portal.reached(id, "Unknown")
    wish = asyncio.create_task(portal.post(f"/terminate/{id}"))
    while not (await portal.job(id))["kill_requested"]:
        pass
    await relay.mend()
    assert (await wish).status == 200
    assert (await portal.ended(id))["status"] == "Killed"


@pytest.mark.parametrize("ends_as", ["Running", "Submitted"])
async def test_a_client_that_only_stops_to_speak_is_cut_off_too(
    tmp_path: Path, ends_as: str
) -> None:
    """The connection stands, but no heartbeat comes: Unknown, and a new stream is opened."""
    async with (
        running_stand_in() as stand_in,
        server_of(
            tmp_path, [stand_in.base], client_lost_after=LOST_AFTER, getter_interval=0.05
        ) as server,
    ):
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        if ends_as == "Running":
            await stand_in.runs(held)
        await server.portal.reached(id, ends_as)
        stand_in.greets = stand_in.lists = False
        await server.portal.reached(id, "Unknown")
        stand_in.greets = stand_in.lists = True
        await server.portal.reached(id, ends_as)
