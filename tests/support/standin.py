"""A client that speaks our protocol, and does what a test tells it instead of running jobs."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from orchestrator_shared.frames import unpack_frame
from orchestrator_shared.protocol import (
    FRAME_LIMIT,
    H_ATTEMPT,
    H_INSTANCE,
    H_JOB,
    H_JOB_STATUS,
    H_LIMIT,
    H_PROTOCOL,
    PROTOCOL,
)
from orchestrator_shared.status import PayloadStatus
from support.frames import plain, raw_frame

Answer = Callable[["StandIn", web.Request, "Held"], Awaitable[web.StreamResponse]]


@dataclass
class Held:
    """A payload that the stand-in holds."""

    id: int
    job: int
    attempt: int
    state: dict[str, Any]
    result: bytes = b""
    #: What came with its submit.
    limit_s: float | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    input: bytes = b""


@dataclass
class StandIn:
    """Told by a test what to say and when. By default it takes every job, and lets it wait."""

    instance: str = "0" * 31 + "1"
    start: str = "1"
    service: str | None = None
    #: Another than the server's: it refuses its requests, or only says so on its stream.
    protocol: int = PROTOCOL
    takes_any_protocol: bool = False
    slots: int = 4
    #: Whether it tells who it is, and that it has told of all it holds.
    greets: bool = True
    lists: bool = True
    #: Whether it tells what it holds before it says that it has.
    tells_held: bool = True
    #: How often it says that it is alive (seconds); None: never.
    beats: float | None = None
    #: Whether it reads what the server says on its stream.
    reads: bool = True
    #: What it answers to a submit; None: it takes the job.
    refusal: dict[str, Any] | None = None
    #: Whether it answers a submit at all.
    answers: bool = True
    #: How it answers the next requests for a result; then it serves what it has.
    faults: list[Answer] = field(default_factory=list)
    #: One for every stream that was opened.
    streams: "asyncio.Queue[None]" = field(default_factory=asyncio.Queue)
    #: One for every time that somebody asked whether it lives.
    probes: "asyncio.Queue[None]" = field(default_factory=asyncio.Queue)
    #: Job and attempt of every submit, in order.
    submits: "asyncio.Queue[tuple[int, int]]" = field(default_factory=asyncio.Queue)
    acknowledged: "asyncio.Queue[tuple[int, int]]" = field(default_factory=asyncio.Queue)
    kills: "asyncio.Queue[tuple[int, int]]" = field(default_factory=asyncio.Queue)
    #: What else the server told it: `list`, `hand_back`.
    orders: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    #: The payloads that the server asked for one by one.
    asked: "asyncio.Queue[int]" = field(default_factory=asyncio.Queue)
    #: The Range of every request for a result.
    ranges: list[str | None] = field(default_factory=list)
    held: dict[int, Held] = field(default_factory=dict)
    #: The payloads that it remembers to have been told to drop.
    dropped: set[int] = field(default_factory=set)
    #: The attempts whose submit it answers with that.
    remembers: set[int] = field(default_factory=set)
    base: str = ""

    def __post_init__(self) -> None:
        self._sockets: list[web.WebSocketResponse] = []
        self._seq = 0
        self._server: TestServer | None = None
        self._port = unused_port()

    async def appear(self) -> None:
        """Take connections; after it was away at the same address, with all that it held."""
        self._server = TestServer(self.app(), port=self._port)
        await self._server.start_server(shutdown_timeout=1)
        self.base = str(self._server.make_url("")).rstrip("/")

    async def vanish(self) -> None:
        """Be away: nobody is answered."""
        if self._server is not None:
            await self._server.close()
        self._server = None

    # --- what a test tells it

    async def say(self, kind: str, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Put any frame on the streams that are open."""
        for socket in list(self._sockets):
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(raw_frame(kind, header, body))

    async def cut(self) -> None:
        """Close the streams; the server opens others."""
        for socket in list(self._sockets):
            await socket.close()

    async def cut_oldest(self) -> None:
        """Close the stream that was opened first."""
        await self._sockets[0].close()

    async def takes(self) -> Held:
        """Wait for the next submit, and give what is held of it."""
        job, attempt = await self.submits.get()
        return next(h for h in self.held.values() if (h.job, h.attempt) == (job, attempt))

    async def runs(self, held: Held) -> None:
        """Tell that a payload runs."""
        held.state["status"] = PayloadStatus.RUNNING.value
        await self._tell(held)

    async def ends(
        self,
        held: Held,
        result: bytes = b"",
        *,
        inline: bool = False,
        along: bytes = b"",
        **more: Any,
    ) -> None:
        """Tell that a payload has ended, Completed unless `more` says otherwise.

        The result goes along where it is `inline`, or other bytes in its place.
        """
        held.result = result
        held.state.update({"status": PayloadStatus.COMPLETED.value, "exit_code": 0, **more})
        if result:
            digest = hashlib.sha256(result).hexdigest()
            held.state["result"] = {"size": len(result), "sha256": digest}
        await self._tell(held, result if inline else along)

    def holds(self, job: int, attempt: int) -> Held:
        """Have a payload that nobody submitted just now."""
        held = self._make(job, attempt)
        self.held[held.id] = held
        return held

    def forget(self, held: Held) -> None:
        """Lose a payload."""
        del self.held[held.id]

    # --- what the server sees

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/live", self._live)
        app.router.add_get("/stream", self._stream)
        app.router.add_post("/submit", self._submit)
        app.router.add_get("/result/{id}", self._result)
        app.router.add_get("/retrieve/{id}", self._retrieve)
        app.router.add_post("/kill/{id}", self._kill)
        app.on_response_prepare.append(self._sign)
        app.on_shutdown.append(self._shut_down)
        return app

    async def _shut_down(self, _app: web.Application) -> None:
        await self.cut()

    async def _sign(self, _request: web.Request, response: web.StreamResponse) -> None:
        if "X-Not-Ours" in response.headers:
            return
        response.headers[H_PROTOCOL] = str(self.protocol)
        response.headers[H_INSTANCE] = self.instance

    async def _live(self, _request: web.Request) -> web.Response:
        self.probes.put_nowait(None)
        return web.json_response({"status": "live"})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.protocol != PROTOCOL and not self.takes_any_protocol:
            self.streams.put_nowait(None)
            return web.Response(status=426)
        socket = web.WebSocketResponse(max_msg_size=FRAME_LIMIT, compress=False, timeout=1.0)
        await socket.prepare(request)
        self._sockets.append(socket)
        if self.greets:
            hello = {
                "protocol": self.protocol,
                "version": "0",
                "instance": self.instance,
                "start": self.start,
                "service": self.service,
                "slots": self.slots,
                "kill_grace": 0.0,
            }
            await socket.send_bytes(raw_frame("hello", hello))
            beat = {"others": 0, "cpu_load": 0.0}
            await socket.send_bytes(raw_frame("heartbeat", beat))
            for held in self.held.values() if self.tells_held else ():
                await socket.send_bytes(self._frame(held))
        if self.lists:
            await socket.send_bytes(raw_frame("listed", {}))
        if not self.reads and request.transport is not None:
            request.transport.pause_reading()
        self.streams.put_nowait(None)
        beating = asyncio.create_task(self._beat_on(socket))
        try:
            async for message in socket:
                await self._hear(message.data)
        finally:
            beating.cancel()
            self._sockets.remove(socket)
        return socket

    async def _beat_on(self, socket: web.WebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError):
            while self.beats is not None:
                await asyncio.sleep(self.beats)
                beat = {"others": 0, "cpu_load": 0.0}
                await socket.send_bytes(raw_frame("heartbeat", beat))

    async def _hear(self, frame: bytes) -> None:
        message, body = unpack_frame(frame)
        kind, header = plain(message)
        if kind in ("list", "hand_back"):
            self.orders.put_nowait(kind)
            if kind == "list":
                await self._list()
            return
        key = (header["job"], header["attempt"])
        if kind == "acknowledge":
            self.acknowledged.put_nowait(key)
            self.held = {id: h for id, h in self.held.items() if (h.job, h.attempt) != key}
        elif kind == "submit":
            held = self._take(*key)
            held.limit_s, held.files = header["limit_s"], header["files"]
            held.input = body
            if self.refusal is not None:
                await self.say("refused", {"job": key[0], "attempt": key[1], **self.refusal})
            elif self.answers:
                await self._tell(held)

    async def _list(self) -> None:
        for held in list(self.held.values()) if self.tells_held else ():
            await self._tell(held)
        await self.say("listed", {})

    async def _submit(self, request: web.Request) -> web.Response:
        key = (int(request.headers[H_JOB]), int(request.headers[H_ATTEMPT]))
        await request.read()
        if self.protocol != PROTOCOL:
            self.submits.put_nowait(key)
            return web.Response(status=426)
        held = self._take(*key)
        limit = request.headers.get(H_LIMIT)
        held.limit_s = float(limit) if limit is not None else None
        if self.refusal is not None:
            if self.refusal.get("held"):
                return web.json_response(
                    {}, status=409, headers={H_ATTEMPT: str(self.refusal["held"])}
                )
            status = (507 if self.refusal["disk"] else 503) if self.refusal["transient"] else 413
            if self.refusal.get("damaged"):
                status = 422
            return web.json_response({"message": self.refusal["message"]}, status=status)
        if not self.answers:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        await self._tell(held)
        return web.json_response(held.state)

    async def _result(self, request: web.Request) -> web.StreamResponse:
        held = self.held.get(int(request.match_info["id"]))
        self.ranges.append(request.headers.get("Range"))
        if held is None:
            return web.Response(status=404)
        if self.faults:
            return await self.faults.pop(0)(self, request, held)
        return serve(request, held.result)

    async def _retrieve(self, request: web.Request) -> web.Response:
        id = int(request.match_info["id"])
        self.asked.put_nowait(id)
        if id in self.dropped:
            return web.Response(status=204, headers={H_JOB_STATUS: "Cleaned"})
        return web.Response(status=202 if id in self.held else 404)

    async def _kill(self, request: web.Request) -> web.Response:
        held = self.held[int(request.match_info["id"])]
        self.kills.put_nowait((held.job, held.attempt))
        return web.json_response(held.state)

    # ---

    def _take(self, job: int, attempt: int) -> Held:
        """The payload of an attempt; the same one again gets the same back."""
        known = [h for h in self.held.values() if (h.job, h.attempt) == (job, attempt)]
        held = known[0] if known else self._make(job, attempt)
        if attempt in self.remembers:
            held.state["status"] = PayloadStatus.CLEANED.value
        if self.refusal is None:
            self.held[held.id] = held
        self.submits.put_nowait((job, attempt))
        return held

    @staticmethod
    def _make(job: int, attempt: int) -> Held:
        id = 1000 * job + attempt
        state = {
            "id": id,
            "status": PayloadStatus.PREPARED.value,
            "loc": "/nowhere",
            "pid": 0,
            "killed": False,
            "job": job,
            "attempt": attempt,
        }
        return Held(id, job, attempt, state)

    def _frame(self, held: Held, body: bytes = b"") -> bytes:
        self._seq += 1
        return raw_frame("state", {"seq": self._seq, "payload": held.state}, body)

    async def _tell(self, held: Held, body: bytes = b"") -> None:
        for socket in list(self._sockets):
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(self._frame(held, body))


def serve(request: web.Request, content: bytes) -> web.Response:
    """A result, or the range of it that is asked for."""
    asked = request.headers.get("Range")
    if asked is None:
        return web.Response(body=content)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return web.Response(status=206, body=content[start:], headers=headers)


async def cut_in_the_middle(
    _stand_in: StandIn, request: web.Request, held: Held
) -> web.StreamResponse:
    """Send half of what is asked for, then break the connection."""
    whole = serve(request, held.result)
    assert isinstance(whole.body, bytes)
    response = web.StreamResponse(status=whole.status)
    response.content_length = len(whole.body)
    await response.prepare(request)
    await response.write(whole.body[: len(whole.body) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def damaged(_stand_in: StandIn, request: web.Request, held: Held) -> web.StreamResponse:
    """Send as many bytes, but one of them is another."""
    middle = len(held.result) // 2
    wrong = bytes([held.result[middle] ^ 1])
    return serve(request, held.result[:middle] + wrong + held.result[middle + 1 :])


@contextlib.asynccontextmanager
async def running_stand_in(**settings: Any) -> AsyncIterator[StandIn]:
    """A stand-in that is served."""
    stand_in = StandIn(**settings)
    await stand_in.appear()
    try:
        yield stand_in
    finally:
        await stand_in.vanish()
