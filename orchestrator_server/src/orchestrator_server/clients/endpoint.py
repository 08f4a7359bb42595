"""One client: what it said of itself, and its stream."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp

from orchestrator_server.clients.listening import Acquaintance, Listener
from orchestrator_server.clients.opening import Out, Stream, check_protocol, open_stream
from orchestrator_server.clients.original.client import OriginalClient
from orchestrator_server.clients.original.finding import Originals
from orchestrator_server.clients.outcomes import (
    NotReceived,
    OutcomeUnknown,
    Outdated,
    Refused,
    RefusedForNow,
    SubmitError,
)
from orchestrator_server.clients.requests import UNREACHABLE, Requests
from orchestrator_server.config import ClientAddress
from orchestrator_server.store.job import Job, JobInput
from orchestrator_shared.errors import ClientUnreachable, NotUsable
from orchestrator_shared.messages import (
    Acknowledge,
    HandBack,
    Heartbeat,
    Hello,
    List,
    Listed,
    Message,
    Other,
    Refusal,
    State,
    Submit,
)
from orchestrator_shared.protocol import H_PROTOCOL, SILENCE_LIMIT
from orchestrator_shared.status import PayloadStatus

log = logging.getLogger(__name__)

#: How long to wait (seconds) before a stream that broke is opened again: at first, at most.
RETRY_FIRST: Final = 0.1
RETRY_MOST: Final = 2.0
#: Likewise before a client that refused a job is sent another.
BACKOFF_FIRST: Final = 0.5
BACKOFF_MOST: Final = 30.0


class Endpoint:
    """One client at one address. Its lane is its own: nothing here waits for another client."""

    def __init__(
        self,
        address: ClientAddress,
        session: aiohttp.ClientSession,
        server: str,
        lost_after: float,
        listener: Listener,
        acquaintance: Acquaintance,
        originals: Originals,
        twin: Callable[["Endpoint"], "Endpoint | None"],
    ) -> None:
        """`twin` gives another endpoint that follows the client which was met at this one."""
        self.address = address
        self._own_requests = Requests(address, session, server)
        self.requests: Requests | OriginalClient = self._own_requests
        self.instance: str | None = None
        self.start: str | None = None
        self.version = ""
        #: The only service whose jobs it takes; None: any.
        self.service: str | None = None
        self.slots = 0
        self.others = 0
        self.stuck = 0
        self.load = 0.0
        #: What it says of itself (`up`, `leaving` or `out`), and why.
        self.state = "up"
        self.why = ""
        self.kill_grace = 10.0
        #: When it was last heard of (monotonic seconds); None: never.
        self.last_seen: float | None = None
        #: Why it answers, and does not work with this server; empty: it does, or is not there.
        self.why_out = ""
        #: Whether it has told of every payload on the stream that is open now.
        self.listed = False
        #: The endpoint that follows the client which answers here too.
        self.same_as: Endpoint | None = None
        #: Whether the refusal it backs off for was for want of room on its disk.
        self.disk_full = False
        #: The payloads it told of on the stream that is open now.
        self.told: set[tuple[int, int]] = set()
        #: Payloads of jobs that this server does not know: it was restored, and leaves them alone.
        self.unknown: set[tuple[int, int]] = set()
        self._session = session
        self._originals = originals
        self._lost_after = lost_after
        self._listener = listener
        self._acquaintance = acquaintance
        #: The payloads told of since the client was asked to tell of all again.
        self._retold: set[tuple[int, int]] | None = None
        self._twin = twin
        self._stream: Stream | OriginalClient | None = None
        #: What it was told to drop on the stream that is open now, and has not confirmed.
        self._acknowledged: set[tuple[int, int]] = set()
        self._submits: dict[tuple[int, int], asyncio.Future[SubmitError | None]] = {}
        self._backoff = 0.0
        self._backoff_until = 0.0
        self._problem = ""

    @property
    def name(self) -> str:
        """How it is called in records and logs: its base URL."""
        return self.address.base

    @property
    def connected(self) -> bool:
        """Whether a stream is open on which it has said who it is."""
        return self._stream is not None

    @property
    def backing_off(self) -> bool:
        """Whether it refused a job a moment ago."""
        return time.monotonic() < self._backoff_until

    @property
    def problem(self) -> str:
        """Why no stream is open; empty where nobody knows yet."""
        return self._problem

    @property
    def takes_jobs(self) -> bool:
        """Whether it wants to be sent jobs, and nobody forbade it."""
        return self.state == "up" and not self._acquaintance.is_draining(self.instance)

    # --- the stream

    async def follow(self) -> None:
        """Keep the stream open for as long as the server lives."""
        delay = RETRY_FIRST
        while True:
            if await self._is_followed_elsewhere():
                await asyncio.sleep(RETRY_MOST)
                continue
            why_out = ""
            try:
                await self._follow_once()
                self._problem = "it closed the stream"
            except Out as error:
                self._problem = why_out = str(error)
                self.instance = error.instance or self.instance
            except NotUsable as error:
                self._problem = str(error)
            except (ClientUnreachable, *UNREACHABLE) as error:
                self._problem = str(error) or type(error).__name__
            except Exception as error:
                self._problem = f"{type(error).__name__}: {error}"
                log.exception("the stream of client %s failed, and is opened again", self.name)
            if self.listed:
                delay = RETRY_FIRST
                log.warning("client %s is cut off: %s", self.name, self._problem)
            if why_out not in ("", self.why_out):
                log.warning("client %s is out: %s", self.name, why_out)
            self.why_out = why_out
            self._forget_stream()
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MOST)

    async def _is_followed_elsewhere(self) -> bool:
        """Whether the client at this address is followed at another: it is used once, and keeps
        one stream per server."""
        twin = self._twin(self)
        if twin is None or await self.requests.instance() != self.instance:
            self.same_as = None
        elif self.same_as is not twin:
            self.same_as = twin
            log.warning("%s and %s are the same client: it is used once", self.name, twin.name)
        return self.same_as is not None

    async def _follow_once(self) -> None:
        async with contextlib.aclosing(await self._open()) as stream:
            while (message := await stream.receive(self._lost_after)) is not None:
                self.last_seen = time.monotonic()
                said, body = message
                if isinstance(said, Hello):
                    self._greet(said, stream)
                elif self._stream is not None:
                    self._hear(said, body)

    async def _open(self) -> Stream | OriginalClient:
        own = self._own_requests
        try:
            return await open_stream(self._session, own, self.name, own.server, self._lost_after)
        except aiohttp.WSServerHandshakeError as error:
            if H_PROTOCOL in (error.headers or ()):
                raise
            original = await self._originals.open(self._session, self.address)
            if original is None:
                raise
            return original

    def _greet(self, hello: Hello, stream: Stream | OriginalClient) -> None:
        check_protocol(hello)
        self.requests = stream.requests
        self.why_out = ""
        self.instance, self.start = hello.instance, hello.start
        self.version, self.service = hello.version, hello.service
        self.slots = hello.slots
        self.kill_grace = hello.kill_grace
        self._acquaintance.meet(hello.instance, self.name, hello)
        self.told.clear()
        self.unknown.clear()
        self._retold = None
        self._acknowledged.clear()
        self._stream = stream

    def _hear(self, message: Message | Other, body: bytes) -> None:
        if isinstance(message, State):
            payload = message.payload
            key = (payload.job, payload.attempt)
            self._decide(key, None)
            if payload.status is PayloadStatus.CLEANED and key in self._acknowledged:
                self._acknowledged.discard(key)
                return
            self.told.add(key)
            if self._retold is not None:
                self._retold.add(key)
            self._listener.on_state(self, payload, body)
        elif isinstance(message, Heartbeat):
            self._beat(message)
        elif isinstance(message, Listed):
            self._complete()
        elif isinstance(message, Refusal):
            self._decide((message.job, message.attempt), _refused(message))

    def _beat(self, beat: Heartbeat) -> None:
        said = (beat.state, beat.why)
        if said != (self.state, self.why) and said != ("up", ""):
            log.warning("client %s is %s: %s", self.name, *said)
        more = beat.others < self.others or (said[0] == "up" and self.state != "up")
        self.state, self.why = said
        self.others, self.load = beat.others, beat.cpu_load
        self.stuck = beat.stuck
        if more:
            self._listener.on_room(self)

    def _complete(self) -> None:
        """It has told of every payload."""
        if not self.listed:
            self.listed = True
            self._end_backoff()
            slots = f"{self.slots} slots" if self.tells_slots else f"{self.version}, tells no slots"
            log.info("client %s is there: %s", self.name, slots)
        if self._retold is not None:
            self.told = self._retold
            self._retold = None
        self._listener.on_listed(self)

    async def list_again(self) -> None:
        """Have it tell of every payload, beside what it tells of itself."""
        if self.listed and self._retold is None:
            self._retold = set()
            with contextlib.suppress(ClientUnreachable):
                await self._send(List())

    async def hand_back(self) -> None:
        """Have it give back what it has not begun."""
        with contextlib.suppress(ClientUnreachable):
            await self._send(HandBack())

    def _decide(self, key: tuple[int, int], error: SubmitError | None) -> None:
        """The outcome of a small submit, if it is one that somebody waits for."""
        submit = self._submits.get(key)
        if submit is not None and not submit.done():
            submit.set_result(error)

    def _forget_stream(self) -> None:
        self._stream = None
        self.listed = False
        for key in list(self._submits):
            self._decide(key, OutcomeUnknown(problem="the stream broke"))

    async def _send(self, message: Message, body: bytes = b"") -> None:
        """Say something on the stream.

        Raises:
            ClientUnreachable: there is none.
        """
        if self._stream is None:
            raise ClientUnreachable(client=self.name, problem=self._problem)
        try:
            await self._stream.send(message, body)
        except UNREACHABLE as error:
            raise ClientUnreachable(client=self.name, problem=str(error)) from error

    # --- 3 send

    async def submit(
        self, job: Job, job_input: JobInput, folder: Path, limit_s: float | None
    ) -> None:
        """Hand over a job, which may run for `limit_s` seconds; returns once the client holds it.

        Raises:
            SubmitError: it does not, or nobody knows.
        """
        try:
            if job_input.body is not None and self._takes_small_jobs:
                await self._submit_small(job, job_input, job_input.body, limit_s)
            else:
                payload = await self.requests.submit(job, job_input, folder, limit_s)
                if payload.status is PayloadStatus.CLEANED:
                    # Of that its stream tells nothing.
                    self._listener.on_state(self, payload, b"")
        except (NotReceived, RefusedForNow, OutcomeUnknown) as error:
            self._back_off(disk=isinstance(error, RefusedForNow) and error.disk)
            raise
        self._end_backoff()

    @property
    def tells_slots(self) -> bool:
        """Whether it says how many jobs it runs at once."""
        return self._stream is None or self._stream.tells_slots

    @property
    def _takes_small_jobs(self) -> bool:
        return self._stream is None or self._stream.takes_small_jobs

    async def _submit_small(
        self, job: Job, job_input: JobInput, body: bytes, limit_s: float | None
    ) -> None:
        """On the stream, in one frame: a request of its own costs more than the job's bytes."""
        key = (job.id, job.attempt)
        message = Submit(
            job=job.id,
            attempt=job.attempt,
            service=job.service,
            limit_s=limit_s,
            files=job_input.files,
        )
        answer: asyncio.Future[SubmitError | None] = asyncio.get_running_loop().create_future()
        self._submits[key] = answer
        try:
            if self._stream is None:
                raise NotReceived(problem=f"{self.name}: {self._problem}")
            try:
                await self._send(message, body)
            except ClientUnreachable as error:
                raise OutcomeUnknown(problem=str(error)) from error
            async with asyncio.timeout(SILENCE_LIMIT):
                if (refusal := await answer) is not None:
                    raise refusal
        except TimeoutError as error:
            raise OutcomeUnknown(problem=f"no answer for {SILENCE_LIMIT:.0f} s") from error
        finally:
            del self._submits[key]

    def _back_off(self, *, disk: bool) -> None:
        self.disk_full = disk
        if self.backing_off:  # several jobs that were under way count once
            return
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
            await self._send(Acknowledge(job=job, attempt=attempt))
            self.told.discard((job, attempt))
            self._acknowledged.add((job, attempt))


def _refused(refusal: Refusal) -> SubmitError:
    """Why a submit on the stream was not taken."""
    if refusal.held is not None:
        return Outdated(refusal.held)
    if refusal.transient:
        return RefusedForNow(refusal.message, disk=refusal.disk, damaged=refusal.damaged)
    return Refused(message=refusal.message)
