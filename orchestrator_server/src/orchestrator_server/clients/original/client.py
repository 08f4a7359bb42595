"""A client of the original: it is polled, and its answers are said as our clients say them.

It has no stream and no acknowledgement, tells no slots, and its ids may begin at 1 again. Each
submit carries one more file, which names job and attempt: a zip with another's is nobody's result.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from msgspec.structs import replace

from orchestrator_server.clients.original import exchange
from orchestrator_server.clients.original.exchange import AnothersFiles, NoZip
from orchestrator_server.clients.original.identity import Here, instance_of, start_of
from orchestrator_server.clients.original.ids import Ids
from orchestrator_server.clients.original.payload import Followed, with_files
from orchestrator_server.clients.outcomes import Damaged, OutcomeUnknown, PayloadGone
from orchestrator_server.clients.requests import UNREACHABLE
from orchestrator_server.config import ClientAddress
from orchestrator_server.store.job import Job, JobInput
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import ClientUnreachable
from orchestrator_shared.messages import (
    Acknowledge,
    Heartbeat,
    Hello,
    List,
    Listed,
    Message,
    PackedResult,
    PayloadState,
    State,
)
from orchestrator_shared.protocol import PROTOCOL, RETRIEVE_PARTIAL
from orchestrator_shared.status import PAYLOAD_ENDED, PayloadStatus

log = logging.getLogger(__name__)

#: How long the first look at all payloads may take (seconds) before they count as told of.
_LISTED_AFTER: Final = 10.0
#: How long to wait (seconds) before it is looked again whether the first looks are done.
_FIRST_PAUSE: Final = 0.05
#: How often it is told to end a payload that has run for too long.
_KILL_TRIES: Final = 5
_OUT: Final = (
    "its ids began again, and it has old folders yet: payload {payload} came with the files of "
    "another job. Stop it, empty its data folder, and start it again"
)


class OriginalClient:
    """Both the stream of a client, and the requests to it. It outlives a stream that breaks: what
    it has been sent meanwhile is not forgotten."""

    #: Small jobs are submitted as large ones are.
    takes_small_jobs: Final = False
    tells_slots: Final = False

    def __init__(self, here: Here, session: aiohttp.ClientSession, address: ClientAddress) -> None:
        self.requests = self
        self._here = here
        self._session = session
        self._address = address
        self._version = ""
        self._instance = instance_of(address.base)
        self._ids = Ids(here.directory, self._instance)
        self._followed: dict[tuple[int, int], Followed] = {}
        self._dropped = asyncio.Event()
        #: One submit after the other is judged by its id.
        self._judging = asyncio.Lock()
        #: The payload that came with the files of another job, while nothing was done about it.
        self._refused: int | None = None
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._looking: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._polling: asyncio.Task[None] | None = None
        self._errands = Errands("a client of the original could not be told")

    # --- what an endpoint does with a stream

    def begin(self, version: str, jobs: Iterable[Job], limits: Mapping[str, float | None]) -> None:
        """Follow it (again); `jobs` are those that it has, or may have, and `limits` for how long
        an attempt of each service may run (seconds)."""
        self._version = version
        held = {(job.id, job.attempt): job for job in jobs}
        self._followed = {key: f for key, f in self._followed.items() if key in held}
        for key, job in held.items():
            if key in self._followed:
                self._followed[key].said = None
            elif job.payload is None:
                self._ids.count_earlier_unknown()
            else:
                self._followed[key] = Followed.of(job, job.payload, limits.get(job.service))
        self._dropped.set()
        self._messages = asyncio.Queue()
        self._greet()
        self._polling = asyncio.create_task(self._poll(), name=f"poll {self._address.base}")

    async def receive(self, patience: float) -> tuple[Message, bytes]:
        """What it says next, within so many seconds.

        Raises:
            ClientUnreachable, aiohttp.ClientError, OSError, TimeoutError: it does not answer any
                more, or another does.
        """
        async with asyncio.timeout(patience):
            message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        return message, b""

    async def send(self, message: Message, _body: bytes = b"") -> None:
        """Take an order; what a client of the original cannot do is passed over."""
        if isinstance(message, Acknowledge):
            followed = self._followed.pop((message.job, message.attempt), None)
            self._dropped.set()
            if followed is not None:
                # It keeps the files all the same; nobody asks for them any more.
                gone = followed.state(PayloadStatus.CLEANED)
                self._messages.put_nowait(State(seq=0, payload=gone))
        elif isinstance(message, List):
            for followed in self._followed.values():
                if followed.said is not None:
                    self._messages.put_nowait(State(seq=0, payload=followed.said))
            self._messages.put_nowait(Listed())

    async def aclose(self) -> None:
        """Follow it no more, or not before it has begun again."""
        tasks = {*self._looking.values(), *([self._polling] if self._polling else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._errands.close(0)

    def _greet(self) -> None:
        hello = Hello(
            protocol=PROTOCOL,
            version=f"original {self._version}",
            instance=self._instance,
            start=start_of(self._ids.resets),
            slots=0,
            kill_grace=0.0,
        )
        self._messages.put_nowait(hello)

    # --- looking

    async def _poll(self) -> None:
        """Ask how it fares, often enough for its patience, and for its payloads. One bad answer is
        passed over: with no good one for so long the stream ends."""
        pause = min(self._here.interval, self._here.lost_after / 4)
        first: set[asyncio.Task[None]] | None = None
        listed = False
        look_at, listed_at = 0.0, time.monotonic() + _LISTED_AFTER
        try:
            while True:
                try:
                    # A good one stands between two looks at the same payload.
                    load = await exchange.ask_load(self._session, self._address.base)
                except (exchange.Replaced, aiohttp.ClientConnectorError):
                    raise
                except (ClientUnreachable, *UNREACHABLE) as error:
                    log.debug("client %s: %s", self._address.base, error)
                else:
                    await self._look_whether_it_is_well()
                    self._beat(load)
                    if (now := time.monotonic()) >= look_at:
                        look_at = now + self._here.interval - pause / 2
                        looking = self._look_at_all()
                        first = looking if first is None else first
                    # One that is being packed just now takes its time.
                    if not listed and (all(map(asyncio.Task.done, first or ())) or now > listed_at):
                        listed = True
                        self._messages.put_nowait(Listed())
                await asyncio.sleep(pause if listed else min(pause, _FIRST_PAUSE))
        except Exception as error:
            self._messages.put_nowait(error)

    def _beat(self, load: float = 0.0) -> None:
        state: Any = "up" if self._refused is None else "out"
        why = "" if self._refused is None else _OUT.format(payload=self._refused)
        beat = Heartbeat(others=0, cpu_load=load, state=state, why=why)
        self._messages.put_nowait(beat)

    async def _ask(self, payload: int) -> exchange.Answer | None:
        """Ask for a payload; None: no answer, and whether the client is there its load tells."""
        try:
            return await exchange.ask(self._session, f"{self._address.retrieve}/{payload}")
        except UNREACHABLE as error:
            log.debug("client %s: payload %d: %s", self._address.base, payload, error)
            return None

    async def _look_whether_it_is_well(self) -> None:
        """Out is a client until it does not know any more what it gave out."""
        if self._refused is not None:
            answer = await self._ask(self._refused)
            if answer is not None and answer.is_own_404(self._version):
                self._refused = None
        if self._ids.doubtful and not self._judging.locked():
            await self._ids.look(self._ask)

    def _look_at_all(self) -> set[asyncio.Task[None]]:
        """Ask for each payload that has not ended, and is not being asked for yet."""
        for followed in self._followed.values():
            if followed.gone:
                self._tell(followed, followed.lost(followed.gone))
            elif not followed.is_over and followed.key not in self._looking:
                looking = asyncio.create_task(self._look(followed))
                self._looking[followed.key] = looking
        return set(self._looking.values())

    async def _look(self, followed: Followed) -> None:
        """Ask for one payload, and say what has changed."""
        try:
            answer = await self._ask(followed.payload)
        finally:
            del self._looking[followed.key]
        if answer is None or self._followed.get(followed.key) is not followed or followed.gone:
            return
        state = followed.judge(self._version, answer)
        if followed.is_due and (state is None or state.status not in PAYLOAD_ENDED):
            self._errands.run(self._end(followed))
            state = followed.over_limit()
        if state is not None:
            self._tell(followed, state)

    async def _end(self, followed: Followed) -> None:
        for _ in range(_KILL_TRIES):
            with contextlib.suppress(*UNREACHABLE):
                if await exchange.kill(self._session, self._address, followed.payload) in (
                    200,
                    404,
                ):
                    return
            await asyncio.sleep(self._here.interval)

    def _tell(self, followed: Followed, state: PayloadState) -> None:
        """Say how a payload is, where that is news."""
        if self._version == "1" and state.status is not PayloadStatus.COMPLETED:
            state = replace(state, result=None)  # it gives no files but with a zip
        ended = state.status in PAYLOAD_ENDED and not followed.gone
        if self._ids.doubtful and ended and state.result is None and state.fault != "limit":
            # It may be another payload's end. A zip would say whose it is.
            return
        if state != followed.said:
            followed.said = state
            self._messages.put_nowait(State(seq=0, payload=state))

    # --- 3 send

    async def instance(self) -> str | None:
        """Which client answers at this address; None if none does."""
        try:
            await exchange.ask_load(self._session, self._address.base)
        except (ClientUnreachable, *UNREACHABLE):
            return None
        return self._instance

    async def submit(
        self, job: Job, job_input: JobInput, folder: Path, limit_s: float | None
    ) -> PayloadState:
        """Hand over a job; it is followed from then on.

        Raises:
            SubmitError: it was not taken, or nobody knows.
        """
        key = (job.id, job.attempt)
        if (followed := self._followed.get(key)) is None:
            mark = (self._ids.highest, self._ids.resets)
            marker = exchange.marker_of(self._here.server, *key)
            try:
                id = await exchange.post_job(
                    self._session, self._address, marker, job_input, folder
                )
            except OutcomeUnknown:
                self._ids.count_unknown()
                raise
            async with self._judging:
                if self._ids.take(id, mark):
                    await self._begin_again(id)
                followed = self._followed[key] = Followed(*key, id, limit_s)
                self._tell(followed, followed.state(PayloadStatus.PREPARED))
                await self._ids.keep()
        return followed.said or followed.state(PayloadStatus.PREPARED)

    async def _begin_again(self, id: int) -> None:
        """Its ids went back: all that it had of this server before is lost, and is not asked for
        any more. That is written before anything relies on the new ids."""
        before = dict(self._followed)
        self._greet()
        for followed in before.values():
            followed.gone = f"its client began its ids again at {id}"
            self._tell(followed, followed.lost(followed.gone))
        while any(self._followed.get(key) is followed for key, followed in before.items()):
            self._dropped.clear()
            await self._dropped.wait()

    # --- 4 run

    async def kill(self, job: Job) -> None:
        """Ask the client to end a payload; the next look shows the end.

        Raises:
            ClientUnreachable: it did not answer, or cannot do that.
        """
        self._check_instance(job)
        if self._version == "1":
            raise self._unreachable("a client of version 1 cannot end what it runs")
        try:
            status = await exchange.kill(self._session, self._address, job.payload or 0)
        except UNREACHABLE as error:
            raise self._unreachable(str(error)) from error
        if status != 200:
            raise self._unreachable(f"/kill answers {status}")

    async def has_lost(self, _job: Job) -> bool:
        """It is asked for each payload again and again; what is lost is told then."""
        return False

    @contextlib.asynccontextmanager
    async def partial(self, job: Job) -> AsyncIterator[AsyncIterator[bytes]]:
        """The working directory of a payload as it is now, as a stream of zip. It comes here as a
        whole first, as only that shows whose it is.

        Raises:
            ClientUnreachable: it did not answer, or has no such payload.
            NoSpace: there is no room for it here.
        """
        self._check_instance(job)
        target = self._here.tmp / f"partial-{job.id}-{uuid.uuid4().hex}"
        try:
            try:
                await self._get(job, job.payload or 0, target, partial=True)
            except (Damaged, PayloadGone) as error:
                raise self._unreachable(str(error)) from error
            yield exchange.read_chunks(target)
        finally:
            target.unlink(missing_ok=True)

    # --- 5 get

    async def fetch(self, job: Job, payload: PayloadState, target: Path) -> PayloadState:
        """Write the files of a payload that has ended; gives it back as they show it.

        Raises:
            ClientUnreachable: they do not come just now.
            PayloadGone: they are another job's, or may be.
            Damaged: the zip cannot be read.
            Transient, OSError: they cannot be written here.
        """
        self._check_instance(job)
        followed = self._followed.get((job.id, job.attempt))
        if followed is not None and followed.gone:
            raise PayloadGone(payload=payload.id)
        done = payload.status is PayloadStatus.COMPLETED
        try:
            packed, code = await self._get(job, payload.id, target, partial=not done)
        except NoZip:
            if not done and not self._ids.doubtful:
                return replace(payload, result=None)
            if followed is not None:
                followed.said = None  # it is looked again what has become of it
            raise
        return with_files(payload, packed, code)

    async def _get(
        self, job: Job, payload: int, target: Path, *, partial: bool
    ) -> tuple[PackedResult, int | None]:
        """Download a zip, and look whose it is; without a marker it is believed only while ids
        never began again, as it may be from before there were any."""
        start = self._address.base + RETRIEVE_PARTIAL if partial else self._address.retrieve
        packed = await exchange.download(
            self._session, f"{start}/{payload}", target, self._here.check_room
        )
        expected = exchange.marker_of(self._here.server, job.id, job.attempt)
        trusted = self._ids.resets == 0
        try:
            code = await asyncio.to_thread(
                exchange.inspect, target, payload, expected, trusted=trusted
            )
        except AnothersFiles:
            self._refused = payload
            # Before the job is Queued again: it would be sent here.
            self._beat()
            raise
        return packed, code

    def _check_instance(self, job: Job) -> None:
        """What another client had at this address is none of this one's."""
        if job.instance != self._instance:
            raise self._unreachable("another client answers there")

    def _unreachable(self, problem: str) -> ClientUnreachable:
        return ClientUnreachable(client=self._address.base, problem=problem)
