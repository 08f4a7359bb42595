"""One client: what it said of itself, and its stream."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
from aiohttp import ClientWebSocketResponse

from orchestrator_server.clients.outcomes import (
    NotReceived,
    OutcomeUnknown,
    Refused,
    RefusedForNow,
)
from orchestrator_server.clients.requests import UNREACHABLE, Payload, Requests
from orchestrator_server.config import ClientAddress
from orchestrator_server.store.job import Job, JobInput
from orchestrator_shared.errors import ClientUnreachable, NotUsable
from orchestrator_shared.frames import pack_frame, unpack_frame
from orchestrator_shared.protocol import (
    FRAME_LIMIT,
    H_PROTOCOL,
    H_SERVER,
    PROTOCOL,
    SILENCE_LIMIT,
    STREAM,
)

log = logging.getLogger(__name__)

#: How long to wait (seconds) before a stream that broke is opened again: at first, at most.
RETRY_FIRST: Final = 0.1
RETRY_MOST: Final = 2.0
#: Likewise before a client that refused a job is sent another.
BACKOFF_FIRST: Final = 0.5
BACKOFF_MOST: Final = 30.0


class Listener(Protocol):
    """Who wants to know what a client says."""

    def on_state(self, client: "Endpoint", payload: Payload, result: bytes) -> None:
        """A payload is now so; a small result comes with it."""

    def on_listed(self, client: "Endpoint") -> None:
        """The client is there, and has told of every payload."""

    def on_room(self, client: "Endpoint") -> None:
        """The client may take more than before."""


class Endpoint:
    """One client at one address. Its lane is its own: nothing here waits for another client."""

    def __init__(
        self,
        address: ClientAddress,
        session: aiohttp.ClientSession,
        server: str,
        lost_after: float,
        listener: Listener,
    ) -> None:
        self.address = address
        self.requests = Requests(address, session, server)
        self.instance: str | None = None
        self.slots = 0
        self.others = 0
        self.load = 0.0
        self.kill_grace = 10.0
        #: When it was last heard of (monotonic seconds); None: never.
        self.last_seen: float | None = None
        #: Whether it has told of every payload on the stream that is open now.
        self.listed = False
        #: Why it gets no jobs although it answers.
        self.out: str | None = None
        #: Whether the refusal it backs off for was for want of room on its disk.
        self.disk_full = False
        #: The payloads it told of on the stream that is open now.
        self.told: set[tuple[int, int]] = set()
        self._session = session
        self._server = server
        self._lost_after = lost_after
        self._listener = listener
        self._stream: ClientWebSocketResponse | None = None
        self._submits: dict[tuple[int, int], asyncio.Future[None]] = {}
        self._backoff = 0.0
        self._backoff_until = 0.0
        self._problem = ""

    @property
    def name(self) -> str:
        """How it is called in records and logs: its base URL."""
        return self.address.base

    @property
    def backing_off(self) -> bool:
        """Whether it refused a job a moment ago."""
        return time.monotonic() < self._backoff_until

    # --- the stream

    async def follow(self) -> None:
        """Keep the stream open for as long as the server lives."""
        delay = RETRY_FIRST
        while True:
            try:
                await self._follow_once()
                self._problem = "it closed the stream"
            except NotUsable as error:
                self._problem = str(error)
            except UNREACHABLE as error:
                self._problem = str(error) or type(error).__name__
            if self.listed:
                delay = RETRY_FIRST
                log.warning("client %s is cut off: %s", self.name, self._problem)
            self._forget_stream()
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MOST)

    async def _follow_once(self) -> None:
        headers = {H_PROTOCOL: str(PROTOCOL), H_SERVER: self._server}
        async with asyncio.timeout(self._lost_after):
            stream = await self._session.ws_connect(
                self.address.base + STREAM, headers=headers, max_msg_size=FRAME_LIMIT
            )
        async with stream:
            while True:
                message = await stream.receive(timeout=self._lost_after)
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return
                self.last_seen = time.monotonic()
                kind, header, body = unpack_frame(message.data)
                if kind == "hello":
                    self._greet(header, stream)
                elif self._stream is not None:
                    self._hear(kind, header, body)

    def _greet(self, hello: dict[str, Any], stream: ClientWebSocketResponse) -> None:
        if hello["protocol"] != PROTOCOL:
            raise NotUsable(
                problem=f"the client speaks protocol {hello['protocol']}, this server {PROTOCOL}; "
                "install the same version on both"
            )
        self.instance = hello["instance"]
        self.slots = hello["slots"]
        self.kill_grace = hello["kill_grace"]
        self.told.clear()
        self._stream = stream

    def _hear(self, kind: str, header: dict[str, Any], body: bytes) -> None:
        if kind == "state":
            payload = header["payload"]
            key = (payload["job"], payload["attempt"])
            self.told.add(key)
            if (submit := self._submits.get(key)) is not None and not submit.done():
                submit.set_result(None)
            self._listener.on_state(self, payload, body)
        elif kind == "heartbeat":
            more = header["others"] < self.others
            self.others, self.load = header["others"], header["cpu_load"]
            if more:
                self._listener.on_room(self)
        elif kind == "listed":
            self.listed = True
            self._end_backoff()
            log.info("client %s is there: %d slots", self.name, self.slots)
            self._listener.on_listed(self)
        elif kind == "refused":
            submit = self._submits.get((header["job"], header["attempt"]))
            if submit is not None and not submit.done():
                submit.set_exception(
                    RefusedForNow(header["message"], disk=header["disk"])
                    if header["transient"]
                    else Refused(message=header["message"])
                )

    def _forget_stream(self) -> None:
        self._stream = None
        self.listed = False
        for submit in self._submits.values():
            if not submit.done():
                submit.set_exception(OutcomeUnknown(problem="the stream broke"))

    async def _send(self, frame: bytes) -> None:
        """Put a frame on the stream.

        Raises:
            ClientUnreachable: there is none.
        """
        if self._stream is None:
            raise ClientUnreachable(client=self.name, problem=self._problem)
        try:
            await self._stream.send_bytes(frame)
        except UNREACHABLE as error:
            raise ClientUnreachable(client=self.name, problem=str(error)) from error

    # --- 3 send

    async def submit(self, job: Job, job_input: JobInput, folder: Path) -> None:
        """Hand over a job; returns once the client holds it.

        Raises:
            NotReceived, OutcomeUnknown, Refused, RefusedForNow: it does not, or nobody knows.
        """
        try:
            if job_input.body is not None:
                await self._submit_small(job, job_input, job_input.body)
            else:
                await self.requests.submit(job, job_input, folder)
        except (NotReceived, RefusedForNow) as error:
            self._back_off(disk=isinstance(error, RefusedForNow) and error.disk)
            raise
        self._end_backoff()

    async def _submit_small(self, job: Job, job_input: JobInput, body: bytes) -> None:
        """On the stream, in one frame: a request of its own costs more than the job's bytes."""
        key = (job.id, job.attempt)
        header = {
            "job": job.id,
            "attempt": job.attempt,
            "service": job.service,
            "files": job_input.files,
        }
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submits[key] = answer
        try:
            if self._stream is None:
                raise NotReceived(problem=f"{self.name}: {self._problem}")
            try:
                await self._send(pack_frame("submit", header, body))
            except ClientUnreachable as error:
                raise OutcomeUnknown(problem=str(error)) from error
            async with asyncio.timeout(SILENCE_LIMIT):
                await answer
        except TimeoutError as error:
            raise OutcomeUnknown(problem=f"no answer for {SILENCE_LIMIT:.0f} s") from error
        finally:
            del self._submits[key]

    def _back_off(self, *, disk: bool) -> None:
        self.disk_full = disk
        self._backoff = min(max(2 * self._backoff, BACKOFF_FIRST), BACKOFF_MOST)
        self._backoff_until = time.monotonic() + self._backoff
        loop = asyncio.get_running_loop()
        loop.call_later(self._backoff, self._listener.on_room, self)

    def _end_backoff(self) -> None:
        self._backoff = self._backoff_until = 0.0
        self.disk_full = False

    # --- 5 get

    async def acknowledge(self, job: int, attempt: int) -> None:
        """Tell the client that it can drop a payload; where that fails it is told again, when it
        lists the payload the next time."""
        with contextlib.suppress(ClientUnreachable):
            await self._send(pack_frame("acknowledge", {"job": job, "attempt": attempt}))
            self.told.discard((job, attempt))
