"""Clients of the original that are slow, full, replaced, beside ours, or answer what is odd."""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestrator_client.config import LegacyWire
from orchestrator_client.starting import Starting
from orchestrator_server.api.parameters import WAIT_MOST
from orchestrator_server.clients.directory import Directory
from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.store.job import Job
from orchestrator_server.tasks.losses import Losses
from orchestrator_shared.answers import Handler
from orchestrator_shared.errors import Transient, Unavailable
from orchestrator_shared.protocol import STREAM
from support.original_client import OriginalClient, Payload
from support.portal import Portal
from support.servers import OwnServer, server_of
from support.system import client_config, client_is_there, running_client

BOTH = pytest.mark.parametrize("version", ["v1", "v2"])
V2 = pytest.mark.parametrize("version", ["v2"])
#: How often each payload is asked for here (seconds).
OFTEN: dict[str, Any] = {"getter_interval": 0.02}
ANOTHERS = b'{"server": "x", "job": 1, "attempt": 1}'


class Odd(OriginalClient):
    """One that gives the answers of a test first, and can be slow to pack."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        #: With what it refuses the next submits, and that it did.
        self.refusals: deque[str] = deque()
        self.refused: asyncio.Queue[bytes] = asyncio.Queue()
        #: What it answers to the next requests that begin so.
        self.first: dict[str, deque[bytes]] = {}
        #: Set unless it is packing, and says nothing of any payload.
        self.packed = asyncio.Event()
        self.packed.set()

    async def _hear(self, reader: asyncio.StreamReader) -> bytes:
        answer = await super()._hear(reader)
        line = self.asked[-1]
        if line.startswith("GET /retrieve/"):
            await self.packed.wait()
        first = next((a for start, a in self.first.items() if a and line.startswith(start)), None)
        return first.popleft() if first else answer

    def _take(self, content_type: str, body: bytes) -> bytes:
        if not self.refusals:
            return super()._take(content_type, body)
        self.refused.put_nowait(body)
        return bare(self.refusals.popleft())


def bare(status: str) -> bytes:
    """An answer without a body."""
    return f"HTTP/1.1 {status} Such\r\ncontent-length: 0\r\n\r\n".encode()


def as_json(body: bytes) -> bytes:
    """A good answer that calls itself JSON."""
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
async def original(version: str) -> AsyncIterator[Odd]:
    """A client of the original."""
    own = Odd(version)
    await own.appear()
    yield own
    await own.vanish()


@contextlib.asynccontextmanager
async def server_at(
    tmp_path: Path, original: OriginalClient, *more: str, **changes: Any
) -> AsyncIterator[OwnServer]:
    """A server whose service `example` it runs, and these clients beside it."""
    async with server_of(tmp_path, [original.base, *more], **{**OFTEN, **changes}) as own:
        await client_is_there(own.portal, 1 + len(more))
        yield own


async def goes(
    portal: Portal, original: OriginalClient, script: str = "true"
) -> tuple[int, Payload]:
    """Upload a job, and wait until it is there."""
    id = await portal.upload(script)
    return id, await original.submits.get()


async def stands(server: OwnServer) -> dict[str, Any]:
    """How its first client stands."""
    row: dict[str, Any] = (await server.portal.get("/clients")).json["clients"][0]
    return row


async def is_so(server: OwnServer, state: str) -> dict[str, Any]:
    """How its first client stands, once it is in this state."""
    async with asyncio.timeout(WAIT_MOST):
        while (row := await stands(server))["state"] != state:
            await asyncio.sleep(0.01)
    return row


async def stays_up(server: OwnServer, seconds: float) -> None:
    """Its first client is up all the while: that it is not lost can only be waited for."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        row = await stands(server)
        assert row["state"] == "up", row
        await asyncio.sleep(0.02)


async def completes(server: OwnServer, id: int, *, attempt: int = 1) -> None:
    """A job is Completed by this attempt."""
    record = await server.portal.ended(id)
    assert (record["status"], record["attempt"]) == ("Completed", attempt), record


# --- submits


@BOTH
@pytest.mark.parametrize("status", ["400", "413"])
async def test_a_submit_is_refused_for_good(original: Odd, tmp_path: Path, status: str) -> None:
    """The job has failed, and is sent nowhere else."""
    async with server_at(tmp_path, original) as server:
        original.refusals.append(status)
        id = await server.portal.upload("true")
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert status in record["reason"]
        assert original.submits.empty()


@BOTH
@pytest.mark.parametrize("status", ["503", "507"])
async def test_a_submit_is_refused_for_now(original: Odd, tmp_path: Path, status: str) -> None:
    """The job is Queued again, and has lost no attempt."""
    async with server_at(tmp_path, original, service={"max_attempts": 1}) as server:
        original.refusals.extend([status, status])
        id = await server.portal.upload("true")
        await original.refused.get()
        await server.portal.reached(id, "Queued")
        payload = await original.submits.get()
        payload.ends()
        assert (await server.portal.ended(id))["status"] == "Completed"
        assert original.refused.qsize() == 1


@BOTH
async def test_a_submit_that_fails_is_sent_again(original: Odd, tmp_path: Path) -> None:
    """With 500 nobody knows what became of it: it is the same attempt."""
    async with server_at(tmp_path, original, service={"max_attempts": 1}) as server:
        original.refusals.append("500")
        id, payload = await goes(server.portal, original)
        assert payload.files[".orchestrator.job"] in await original.refused.get()
        payload.ends()
        await completes(server, id)


@BOTH
async def test_the_highest_id_cannot_be_written(
    original: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is there all the same, and is not sent twice."""
    keep = Directory.keep_original_ids
    failed = asyncio.Event()

    async def once(self: Directory, instance: str, highest: int, resets: int) -> None:
        if not failed.is_set():
            failed.set()
            raise Transient(problem="the database is locked")
        await keep(self, instance, highest, resets)

    monkeypatch.setattr(Directory, "keep_original_ids", once)
    async with server_at(tmp_path, original) as server:
        id, payload = await goes(server.portal, original)
        await failed.wait()
        await server.portal.reached(id, "Running")
        payload.ends()
        await completes(server, id)
        assert original.submits.empty()


@BOTH
async def test_an_end_is_told_though_a_submit_got_no_answer(original: Odd, tmp_path: Path) -> None:
    """Its job was terminated, so that no later submit shows that the ids went on."""
    async with server_at(tmp_path, original) as server:
        first, payload = await goes(server.portal, original, "first")
        await server.portal.reached(first, "Running")
        original.answers = False
        second, _ = await goes(server.portal, original, "second")
        await server.portal.post(f"/terminate/{second}")
        await server.portal.reached(second, "Killed")
        payload.ends(3)
        payload.state = "failed" if original.version == "v2" else "500"
        assert (await server.portal.ended(first))["status"] == "Failed"


# --- slow clients, slow servers


@V2
async def test_a_stream_breaks_while_losses_are_written(
    original: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids began again, and the database is slow: both jobs go on once it has written that."""
    lose = Losses.lose
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(
        self: Losses, client: Endpoint, job: Job, reason: str | None = None, *, spare: bool = False
    ) -> None:
        begun.set()
        await goes_on.wait()
        await lose(self, client, job, reason, spare=spare)

    async with server_at(tmp_path, original) as server:
        first, _ = await goes(server.portal, original, "first")
        await server.portal.reached(first, "Running")
        monkeypatch.setattr(Losses, "lose", slow)
        original.shows_all_live = True
        await original.start_again(old_folders=False)
        second, taken = await goes(server.portal, original, "second")
        await begun.wait()
        await original.vanish()
        await is_so(server, "lost")
        await original.appear()
        goes_on.set()

        again = await original.submits.get()
        original.shows_all_live = False
        assert (taken.files["run.sh"], again.files["run.sh"]) == (b"second", b"first")
        for id, payload, attempt in ((second, taken, 1), (first, again, 2)):
            await server.portal.reached(id, "Running")
            payload.ends()
            await completes(server, id, attempt=attempt)


@BOTH
async def test_packing_takes_longer_than_a_client_may_be_silent(
    original: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers otherwise, and is up; also where it is packing when the server starts."""
    monkeypatch.setattr("orchestrator_server.clients.original.client._LISTED_AFTER", 0.5)
    async with server_at(tmp_path, original, client_lost_after=0.4) as server:
        id, payload = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
        original.packed.clear()
        payload.ends()
        await stays_up(server, 1.0)
    async with server_at(tmp_path, original, client_lost_after=0.4) as server:
        await stays_up(server, 0.6)
        original.packed.set()
        await completes(server, id)


@BOTH
async def test_payloads_are_asked_for_seldom(original: Odd, tmp_path: Path) -> None:
    """GETTER_INTERVAL may be longer than CLIENT_LOST_AFTER."""
    changes = {"getter_interval": 1.5, "client_lost_after": 0.4}
    async with server_at(tmp_path, original, **changes) as server:
        await stays_up(server, 1.2)
        id, payload = await goes(server.portal, original)
        payload.ends()
        await completes(server, id)


# --- beside ours, and in place of ours


async def test_ours_is_not_ready_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream answers 503 while it starts, and LEGACY_WIRE answers all the same: it is ours."""
    inner = Starting.wait
    times = 1

    @web.middleware
    async def wait(self: Starting, request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal times
        if request.path == STREAM and times:
            times -= 1
            raise Unavailable(problem="this client is starting")
        return await inner(self, request, handler)

    monkeypatch.setattr(Starting, "wait", wait)
    config = client_config(tmp_path / "client", legacy_wire=LegacyWire.V2)
    async with running_client(config) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base], **OFTEN) as server:
            await client_is_there(server.portal)
            row = await stands(server)
            assert (times, row["slots"]) == (0, 2)
            assert "original" not in row["version"]
            await completes(server, await server.portal.upload("true"))


@BOTH
async def test_one_of_ours_comes_in_its_place(original: Odd, tmp_path: Path) -> None:
    """Between two looks, so that nothing was silent; its job is run again there."""
    changes = {"getter_interval": 0.5, "client_lost_after": 2.0}
    async with server_at(tmp_path, original, **changes) as server:
        id, _ = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
        await original.seen("GET /load")
        await original.vanish()
        wire = LegacyWire(original.version)
        config = client_config(tmp_path / "client", legacy_wire=wire)
        async with running_client(config, int(original.base.rpartition(":")[2])):
            await completes(server, id, attempt=2)
            row = await is_so(server, "up")
            assert "original" not in row["version"]


@V2
async def test_the_slots_of_ours_do_not_limit_one_of_the_original(
    original: Odd, tmp_path: Path
) -> None:
    """Of one service: more jobs run than ours has slots."""
    async with running_client(client_config(tmp_path / "client", slots=1)) as client:
        base = str(client.make_url("")).rstrip("/")
        service = {"runs_per_user": 50}
        async with server_at(tmp_path, original, base, service=service) as server:
            for id in [await server.portal.upload("sleep 100") for _ in range(4)]:
                await server.portal.reached(id, "Running")


# --- limits


@V2
async def test_a_limit_holds_though_it_says_nothing_of_a_payload(
    original: Odd, tmp_path: Path
) -> None:
    """It answers 500, which proves nothing; MAX_RUNTIME ends it."""
    async with server_at(tmp_path, original, service={"max_runtime": 0.3}) as server:
        id, payload = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
        payload.state = "500"
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "limit")
        assert await original.kills.get() == payload.id


@BOTH
async def test_a_limit_counts_from_the_start_of_a_job(original: Odd, tmp_path: Path) -> None:
    """Not from that of the server: here the job ran for a minute before."""
    async with server_at(tmp_path, original, service={"max_runtime": 50.0}) as server:
        id, _ = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
    with contextlib.closing(sqlite3.connect(tmp_path / "server.sqlite")) as connection, connection:
        connection.execute("UPDATE jobs SET started_at = started_at - 60")
    async with server_at(tmp_path, original, service={"max_runtime": 50.0}) as server:
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "limit")


# --- files


@BOTH
async def test_anothers_files_cost_no_attempt(original: Odd, tmp_path: Path) -> None:
    """Not the first two times; until something is done about it the client is out."""
    async with server_at(tmp_path, original, service={"max_attempts": 1}) as server:
        id, payload = await goes(server.portal, original)
        for _ in range(2):
            payload.files[".orchestrator.job"] = ANOTHERS
            payload.ends()
            await is_so(server, "out")
            await original.seen(f"GET /retrieve/{payload.id}$")
            assert original.submits.empty()
            del original.held[payload.id]
            payload = await original.submits.get()
            await is_so(server, "up")
        payload.ends()
        await completes(server, id, attempt=3)


@BOTH
async def test_a_job_that_removes_its_marker_is_alone_in_that(
    original: Odd, tmp_path: Path
) -> None:
    """After ids began again it is refused; others run at that client meanwhile."""
    async with server_at(tmp_path, original, service={"max_attempts": 1}) as server:
        first, payload = await goes(server.portal, original)
        payload.ends()
        await completes(server, first)
        await original.start_again(old_folders=False)
        id, unmarked = await goes(server.portal, original)
        del unmarked.files[".orchestrator.job"]
        unmarked.ends()
        record = await server.portal.ended(id)
        assert record["status"] == "Failed"
        assert ".orchestrator.job" in record["reason"]
        other, payload = await goes(server.portal, original)
        payload.ends()
        await completes(server, other)
        assert (await stands(server))["state"] == "up"


@BOTH
async def test_a_changed_byte_is_not_stored(original: Odd, tmp_path: Path) -> None:
    """The zip is fetched again, and the attempt is the same."""
    async with server_at(tmp_path, original) as server:
        id, payload = await goes(server.portal, original)
        output = bytes(range(256)) * 8
        payload.ends(output=output)
        packed = bytearray(payload.packed())
        packed[packed.index(b"output") + 20] ^= 0xFF
        original._old[payload.id] = bytes(packed)
        record = await server.portal.reached(id, "Unknown", "Completed")
        assert record["status"] == "Unknown"
        original._old.clear()
        await completes(server, id)
        assert (await server.portal.result(id)).read("output") == output


@V2
async def test_files_of_a_failed_job_are_asked_for_again(original: Odd, tmp_path: Path) -> None:
    """One 503 does not give them up."""
    async with server_at(tmp_path, original) as server:
        id, payload = await goes(server.portal, original)
        payload.ends(3, output=b"half")
        original.first["GET /retrieve_partial"] = deque([bare("503")])
        payload.state = "failed"
        record = await server.portal.ended(id)
        assert (record["status"], record["exit_code"]) == ("Failed", 3)
        answer = await server.portal.get(f"/download_partial/{id}")
        assert answer.zip.read("output") == b"half"


@V2
async def test_nothing_stays_of_a_directory_that_was_shown(original: Odd, tmp_path: Path) -> None:
    """Whether it was passed on, is no zip, or is another job's."""
    async with server_at(tmp_path, original) as server:
        id, payload = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/zip\r\ncontent-length: 9\r\n\r\n"
        original.first["GET /retrieve_partial"] = deque([head + b"Not a zip"])
        answers = [await server.portal.get(f"/download_partial/{id}") for _ in range(2)]
        payload.files[".orchestrator.job"] = ANOTHERS
        answers.append(await server.portal.get(f"/download_partial/{id}"))
        assert [answer.status for answer in answers] == [502, 200, 502]
        async with asyncio.timeout(WAIT_MOST):
            while any(p.is_file() for p in (tmp_path / "server" / "tmp").rglob("*")):
                await asyncio.sleep(0.01)


# --- odd answers


@BOTH
async def test_a_client_says_once_that_it_is_busy(
    original: Odd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not cut off for that, and nothing is logged."""
    async with server_at(tmp_path, original) as server:
        original.first["GET /load"] = deque([bare("503")])
        for _ in range(3):
            await original.seen("GET /load")
        assert not original.first["GET /load"]
        await stays_up(server, 0.3)
        assert "cut off" not in caplog.text
        assert [record for record in caplog.records if record.exc_info] == []


@BOTH
async def test_odd_json_says_nothing(
    original: Odd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next answer counts."""
    bodies = (b'{"status": []}', b'{"status": {}}', b"null", b"{}", b"\xff", b"[" * 60000)
    async with server_at(tmp_path, original) as server:
        id, payload = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
        original.first["GET /retrieve/"] = deque(map(as_json, bodies))
        while original.first["GET /retrieve/"]:
            await original.seen("GET /retrieve/")
        assert (await stands(server))["state"] == "up"
        payload.ends()
        await completes(server, id)
        assert [record for record in caplog.records if record.exc_info] == []
