"""A client that is away: jobs wait, go on when it comes, and run once whatever got lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import unused_port

from orchestrator_server.clients import endpoint
from support.gate import Gate
from support.relay import running_relay
from support.servers import server_of
from support.standin import running_stand_in
from support.system import client_config, client_is_there, running_client


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where jobs wait."""
    made = Gate(tmp_path)
    yield made
    made.close()


async def test_jobs_wait_for_a_client_and_go_on_when_it_comes(tmp_path: Path) -> None:
    """Queued, with the reason; nothing counts against them meanwhile."""
    port = unused_port()
    async with server_of(tmp_path, [f"http://127.0.0.1:{port}"]) as server:
        portal = server.portal
        ids = [await portal.upload("true", user_id=user) for user in (1, 2)]
        for id in ids:
            record = await portal.job(id)
            assert (record["status"], record["attempt"]) == ("Queued", 0)
            assert record["waiting"]["code"] == "no_client"

        async with running_client(client_config(tmp_path / "client"), port):
            for id in ids:
                record = await portal.ended(id)
                assert (record["status"], record["attempt"]) == ("Completed", 1)

        again = await portal.upload("true")
        assert (await portal.job(again))["status"] == "Queued"
        async with running_client(client_config(tmp_path / "client"), port):
            assert (await portal.ended(again))["status"] == "Completed"


@pytest.mark.parametrize("size", [0, 100_000], ids=["small", "large"])
async def test_an_answer_that_got_lost_runs_nothing_twice(
    tmp_path: Path, gate: Gate, size: int
) -> None:
    """The client took the job, the server never heard of it: the same attempt is sent again."""
    starts = tmp_path / "starts"
    run = f"echo $ORCH_ATTEMPT >> {starts}; {gate.wait}; echo done"
    async with (
        running_client(client_config(tmp_path / "client")) as client,
        running_relay(str(client.make_url(""))) as relay,
        server_of(tmp_path, [relay.base]) as server,
    ):
        portal = server.portal
        await client_is_there(portal)
        relay.swallows_answers = True
        id = await portal.upload({"run.sh": run, "filler": b"x" * size})
        assert await gate.reached() == id
        assert (await portal.job(id))["status"] == "Processing"
        await relay.cut()
        await relay.mend()

        assert (await portal.reached(id, "Running"))["attempt"] == 1
        gate.open()
        record = await portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 1)
        assert (await portal.result(id)).read(".orchestrator/stdout.log") == b"done\n"
    assert starts.read_text() == "1\n"


async def test_one_client_at_two_addresses_is_used_once(tmp_path: Path, gate: Gate) -> None:
    """It gets no more jobs than it has slots, and its stream is not fought for."""
    async with (
        running_client(client_config(tmp_path / "client", slots=2)) as client,
        running_relay(str(client.make_url(""))) as relay,
    ):
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, {"x": [base, relay.base], "y": [relay.base]}) as server:
            portal = server.portal
            await client_is_there(portal)
            ids = [await portal.upload(gate.wait, service=name) for name in ("x", "y", "x", "y")]
            running = {await gate.reached() for _ in range(2)}
            for id in set(ids) - running:
                assert (await portal.job(id))["status"] == "Queued"
            gate.open(4)
            for id in ids:
                record = await portal.ended(id)
                assert (record["status"], record["attempt"]) == ("Completed", 1)


async def test_the_stream_of_a_client_at_two_addresses_is_not_fought_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client keeps the newest one: whoever was first looks, and does not take it back."""
    monkeypatch.setattr(endpoint, "RETRY_MOST", 0.05)
    async with (
        running_stand_in() as stand_in,
        running_relay(stand_in.base) as relay,
        server_of(tmp_path, [stand_in.base, relay.base]) as server,
    ):
        await client_is_there(server.portal)
        await stand_in.streams.get()
        await stand_in.streams.get()
        # As a client does: the older stream is ended.
        await stand_in.cut_oldest()
        for _ in range(3):
            await stand_in.probes.get()
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, status="Invalid", exit_code=None)
        assert (await server.portal.ended(id))["status"] == "Invalid"
        assert stand_in.streams.empty()
        assert (await server.portal.get("/health")).json["clients_up"] == 1


async def test_a_client_that_no_setting_names_any_more_is_asked_to_the_end(
    tmp_path: Path, gate: Gate
) -> None:
    """Its jobs end there; it gets nothing new."""
    async with running_client(client_config(tmp_path / "client")) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base]) as server:
            await client_is_there(server.portal)
            id = await server.portal.upload(gate.wait)
            await server.portal.reached(id, "Running")
        async with server_of(tmp_path, [f"http://127.0.0.1:{unused_port()}"]) as server:
            new = await server.portal.upload("true")
            gate.open()
            assert (await server.portal.ended(id))["status"] == "Completed"
            record = await server.portal.job(new)
            assert (record["status"], record["waiting"]["code"]) == ("Queued", "no_client")
