"""LEGACY_WIRE: what a server of the original has to be told, and that nobody else is told it."""

import asyncio
import contextlib
import os
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from orchestrator_client import keys, starting
from orchestrator_client.app import create_app
from orchestrator_client.config import LegacyWire
from orchestrator_server.clients.requests import Requests
from orchestrator_server.config import ClientAddress
from orchestrator_shared.probe import probe
from orchestrator_shared.protocol import H_PROTOCOL
from orchestrator_shared.serving import WARNING
from support.agent import Clocks, claim, form
from support.gate import Gate
from support.original_server import (
    NOTHING,
    VERSIONS,
    ask,
    client_of,
    ended,
    is_empty,
    kind,
    not_done,
    packed,
    submit,
    submit_of,
    taken_slot,
)
from support.recorded import play
from support.system import client_config, running_system


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("script", ["true", "exit 3", "kill -9 $$"])
async def test_how_a_job_ended_stands(
    tmp_path: Path, session: aiohttp.ClientSession, version: str, script: str
) -> None:
    """As long as the payload is kept (MAX_AGE after its end). Once it is dropped it has failed."""
    clocks = Clocks()
    async with client_of(tmp_path, session, version, max_age=100.0) as client:
        await client.stop()
        client.clock = clocks.make()
        await client.start()
        id = await submit(client, script)
        kept = [await ended(client, id)]
        clocks.go_on(99.0)
        await client.app[keys.CLEANER].run_once()
        kept.append(await ask(client, id))
        clocks.go_on(2.0)
        await client.app[keys.CLEANER].run_once()
        dropped = await ask(client, id)

    if script == "true":
        assert [answer.status for answer in kept] == [200, 200]
        assert [packed(answer)["run.sh"] for answer in kept] == [b"true"] * 2
        failures = [dropped]
    else:
        failures = [*kept, dropped]
    for answer in failures:
        if version == "v1":
            is_empty(204)(answer)
        else:
            assert (answer.status, answer.json["status"]) == (200, "Failed")
            assert answer.json.keys() == NOTHING.keys()


async def test_a_job_that_waits_is_killed(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """It does not start any more; its server hears of that as of any other."""
    async with (
        client_of(tmp_path, session, "v2", slots=1) as client,
        taken_slot(tmp_path, client),
    ):
        id = await submit(client, "true")
        assert not_done(await ask(client, id))
        is_empty(200)(await client.kill(id))
        answer = await ended(client, id)
        assert (answer.json["status"], answer.json["killed"]) == ("Killed", True)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_that_starts_says_that_nothing_is_done(
    tmp_path: Path,
    session: aiohttp.ClientSession,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it knows its payloads: any other answer would end their jobs. A submit is refused."""
    async with client_of(tmp_path, session, version) as client:
        id = await submit(client, "true")
        await ended(client, id)
        await client.stop()
        monkeypatch.setattr(starting, "PATIENCE", 0.01)
        # As long as nobody writes into it, it is being read.
        taken = client.control(id) / "payload.json"
        content = taken.read_bytes()
        taken.unlink()
        os.mkfifo(taken)
        config = client_config(client.data_path, legacy_wire=LegacyWire(version))
        server = TestServer(create_app(config), port=unused_port())
        await server.start_server(shutdown_timeout=1)
        client.base = str(server.make_url("")).rstrip("/")
        try:
            asked = {known: await ask(client, known) for known in (id, 99)}
            refused = await play(client.base, submit_of({"run.sh": "true"}))
            await asyncio.to_thread(taken.write_bytes, content)
            result = await ended(client, id)
        finally:
            await server.close()

    for known, answer in asked.items():
        if version == "v1":
            is_empty(202)(answer)
        else:
            assert answer.status == 200
            assert answer.json == {**NOTHING, "id": known, "status": "Running"}
    assert refused.status == 500
    assert packed(result)["run.sh"] == b"true"


@pytest.mark.parametrize("version", VERSIONS)
async def test_why_a_submit_is_refused_stands_in_the_log(
    tmp_path: Path,
    session: aiohttp.ClientSession,
    version: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer, 500, cannot say it, and the job fails for good at its server."""
    async with client_of(tmp_path, session, version, check="echo no disks; exit 1") as client:
        while client.app[keys.STANDING].state != "out":
            await asyncio.sleep(0)
        answer = await play(client.base, submit_of({"run.sh": "true"}))
        assert client.left() == []

    assert answer.status == 500
    assert (answer.json == NOTHING) if version == "v2" else (answer.body == b"")
    (line,) = (r.message for r in caplog.records if "POST /submit is refused" in r.message)
    assert "no disks" in line


@pytest.mark.parametrize(("version", "status"), [("v1", 404), ("v2", 503)])
async def test_health_is_that_of_its_client(
    tmp_path: Path, session: aiohttp.ClientSession, version: str, status: int
) -> None:
    """Version 1 has none, and version 2 nothing but ok. Ours is there for those who ask for it."""
    async with client_of(tmp_path, session, version, check="exit 1") as client:
        while client.app[keys.STANDING].state != "out":
            await asyncio.sleep(0)
        is_empty(status)(await client.portal.get("/health"))
        own = await client.portal.get("/health", headers=claim(1))
    assert (own.status, own.json["status"]) == (503, "unhealthy")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_result_that_cannot_be_read_has_failed(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """It would be asked for again for ever, twice a second."""
    async with client_of(tmp_path, session, version) as client:
        ids = [await submit(client, "true") for _ in range(2)]
        for id in ids:
            assert packed(await ended(client, id))
        short, gone = (client.control(id) / "result.zip" for id in ids)
        short.write_bytes(short.read_bytes()[:-1])
        gone.unlink()
        answers = [await ask(client, id) for id in ids]
    if version == "v1":
        assert [answer.status for answer in answers] == [204, 404]
    else:
        assert [answer.status for answer in answers] == [200, 200]
        assert [answer.json["status"] for answer in answers] == ["Failed", "Failed"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_its_client_does_not_have_is_not_there(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """404 without a body; but for /live: what sees to it that a client lives sends no header."""
    async with client_of(tmp_path, session, version) as client:
        for path in ("/stream", "/result/1", "/nowhere", "/retrieve/x", "/submit"):
            is_empty(404)(await client.portal.get(path))
        assert (await client.portal.get("/live")).json == {"status": "live"}
        assert (await client.portal.get("/nowhere", headers=claim(1))).json["id"] == 0


# --- nobody else is answered so


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_server_of_ours_sees_a_client_of_ours(tmp_path: Path, version: str) -> None:
    """Whatever the setting: small jobs and large ones, partial results, kills."""
    wire = LegacyWire(version)
    with contextlib.closing(Gate(tmp_path)) as gate:
        async with running_system(tmp_path, client={"legacy_wire": wire}) as system:
            portal = system.portal
            small = await portal.upload({"run.sh": "true", "small%2": "x"})
            large = await portal.upload({"run.sh": "true", "large%2": b"x" * 200_000})
            for id, name in ((small, "small%2"), (large, "large%2")):
                assert (await portal.ended(id))["status"] == "Completed"
                assert name in (await portal.result(id)).namelist()
            runs = await portal.upload(f"echo here > here.txt; {gate.wait}")
            assert await gate.reached() == runs
            await portal.reached(runs, "Running")
            partial = await portal.get(f"/download_partial/{runs}")
            assert "here.txt" in partial.zip.namelist()
            assert (await portal.post(f"/terminate/{runs}")).json["status"] == "Killed"
            (client,) = (await portal.get("/clients")).json["clients"]
            assert client["slots"] == 2
            assert client["instance"] == system.client[keys.IDENTITY].instance


async def test_who_asks_which_client_answers_is_a_server_of_ours(
    session: aiohttp.ClientSession,
) -> None:
    """Also this request has the header by which ours are known."""
    asked: list[bool] = []

    async def live(request: web.Request) -> web.Response:
        asked.append(H_PROTOCOL in request.headers)
        return web.Response()

    app = web.Application()
    app.router.add_get("/live", live)
    server = TestServer(app, port=unused_port())
    await server.start_server()
    try:
        address = ClientAddress.from_base(str(server.make_url("")).rstrip("/"))
        assert await Requests(address, session, "a-server").instance() is None
    finally:
        await server.close()
    assert asked == [True]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_payload_of_a_server_of_ours_is_not_theirs(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """Whatever id such a server asks for: nobody gets the result of another's job."""
    async with client_of(tmp_path, session, version) as client:
        id = (await client.run("true", job=1))["id"]
        answer = await ask(client, id)
        partial = await client.portal.get(f"/retrieve_partial/{id}")
        killed = await client.kill(id)
        own = await client.portal.get(f"/retrieve/{id}", headers=claim(1))
    if version == "v1":
        for refused in (answer, partial, killed):
            is_empty(404)(refused)
    else:
        assert answer.json == {**NOTHING, "id": id, "status": "Failed"}
        assert (partial.status, partial.json) == (killed.status, killed.json) == (404, NOTHING)
    assert kind(own) == "zip"


@pytest.mark.parametrize("wire", list(LegacyWire))
async def test_only_with_the_setting_is_anybody_taken_for_such_a_server(
    tmp_path: Path, session: aiohttp.ClientSession, wire: LegacyWire
) -> None:
    """And whoever sends the header never is."""
    async with (
        client_of(tmp_path, session, wire, slots=1) as client,
        taken_slot(tmp_path, client),
    ):
        bare = await client.portal.post("/submit", data=form("true"))
        named = await client.try_submit("true", claim(7))
        waits = await client.portal.get(f"/retrieve/{named.json['id']}", headers=claim(7))
        asked = await client.portal.get(f"/retrieve/{bare.json['id']}")

    assert named.json.keys() > NOTHING.keys()
    assert (waits.status, waits.json["status"]) == (202, "Prepared")
    assert (bare.json.keys() > NOTHING.keys()) == (wire is LegacyWire.OFF)
    assert bool(asked.body and asked.json["status"] == "Prepared") == (wire is LegacyWire.OFF)


async def test_its_own_probe_is_answered(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """`orch-client probe` asks as one of ours: version 1 has no /health."""
    async with client_of(tmp_path, session, "v1") as client:
        port = int(client.base.rpartition(":")[2])
        for route, says in (("health", "healthy"), ("live", "live")):
            assert await asyncio.to_thread(probe, "127.0.0.1", port, None, route) == says


@pytest.mark.parametrize(("wire", "says"), [("off", "CLIENT_TOKEN_FILE"), ("v2", "nobody but")])
def test_a_client_that_others_reach_warns(tmp_path: Path, wire: str, says: str) -> None:
    """A token is no remedy where the server cannot send it."""
    host = "0.0.0.0"  # noqa: S104 - nothing listens there
    config = client_config(tmp_path / "client", host=host, legacy_wire=LegacyWire(wire))

    app = create_app(config)

    assert says in app[WARNING]
    app[keys.PAYLOADS].close()
    app[keys.IDENTITY].release()
