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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from msgspec.structs import replace

from orchestrator_server.clients.directory import Directory
from orchestrator_server.clients.original import exchange
from orchestrator_server.clients.original.exchange import SHORT, AnothersFiles, NoZip
from orchestrator_server.clients.original.identity import instance_of, start_of
from orchestrator_server.clients.original.payload import Followed
from orchestrator_server.clients.outcomes import Damaged, OutcomeUnknown
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
_OUT: Final = (
    "its ids began again, and it has old folders yet: payload {payload} came with the files of "
    "another job. Stop it, empty its data folder, and start it again"
)


@dataclass(frozen=True)
class Here:
    """What of this server a client of the original is followed with."""

    directory: Directory
    #: The id of this server.
    server: str
    #: Where files are put that are under way.
    tmp: Path
    #: How often each payload is asked for (seconds).
    interval: float
    #: The clients that gave another job's files out: for which payload.
    refused: dict[str, int] = field(default_factory=dict)


class OriginalClient:
    """Both the stream of a client, and the requests to it."""

    #: Small jobs are submitted as large ones are.
    takes_small_jobs: Final = False
    tells_slots: Final = False

    def __init__(
        self,
        here: Here,
        session: aiohttp.ClientSession,
        address: ClientAddress,
        version: str,
        highest: int,
        resets: int,
    ) -> None:
        """`highest` is the highest id it gave, `resets` how often its ids began again."""
        self.requests = self
        self._here = here
        self._session = session
        self._address = address
        self._version = version
        self._instance = instance_of(address.base)
        self._highest = highest
        self._resets = resets
        self._followed: dict[tuple[int, int], Followed] = {}
        #: Whether it may have given an id that nobody here knows: then one that is known may be
        #: another payload's.
        self._doubt = False
        self._load = 0.0
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._dropped = asyncio.Event()
        self._looking: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._polling: asyncio.Task[None] | None = None
        self._errands = Errands("a client of the original could not be told")

    # --- what an endpoint does with a stream

    def begin(self, jobs: Iterable[Job], limits: Mapping[str, float | None]) -> None:
        """Follow it; `jobs` are those that it has, or may have."""
        for job in jobs:
            if job.payload is None:
                self._doubt = True
                continue
            followed = self._follow(job.id, job.attempt, job.payload, limits.get(job.service))
            if job.started_at is not None:
                followed.since = time.monotonic() - max(0.0, time.time() - job.started_at)
        self._greet()
        self._polling = asyncio.create_task(self._poll(), name=f"poll {self._address.base}")

    async def receive(self, patience: float) -> tuple[Message, bytes]:
        """What it says next, within so many seconds.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: it does not answer any more.
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
        """Follow it no more."""
        tasks = {*self._looking.values(), *([self._polling] if self._polling else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._errands.close(0)

    def _greet(self) -> None:
        self._messages.put_nowait(
            Hello(
                protocol=PROTOCOL,
                version=f"original {self._version}",
                instance=self._instance,
                start=start_of(self._resets),
                slots=0,
                kill_grace=0.0,
            )
        )

    # --- looking

    async def _poll(self) -> None:
        listed = False
        try:
            while True:
                # A good one stands between two looks at the same payload.
                self._load = await exchange.ask_load(self._session, self._address.base)
                await self._look_whether_it_began_anew()
                self._beat()
                looking = self._look_at_all()
                if not listed and looking:
                    # One that is being packed just now takes its time.
                    await asyncio.wait(looking, timeout=_LISTED_AFTER)
                if not listed:
                    listed = True
                    self._messages.put_nowait(Listed())
                await asyncio.sleep(self._here.interval)
        except Exception as error:
            self._messages.put_nowait(error)

    def _beat(self) -> None:
        refused = self._here.refused.get(self._instance)
        state: Any = "up" if refused is None else "out"
        why = "" if refused is None else _OUT.format(payload=refused)
        beat = Heartbeat(others=0, cpu_load=self._load, state=state, why=why)
        self._messages.put_nowait(beat)

    async def _look_whether_it_began_anew(self) -> None:
        """A client that is out comes back in once it does not know any more what it gave out."""
        if (refused := self._here.refused.get(self._instance)) is not None:
            answer = await exchange.ask(self._session, f"{self._address.retrieve}/{refused}")
            if answer.status == 404 and answer.is_own_404(self._version):
                del self._here.refused[self._instance]

    def _look_at_all(self) -> set[asyncio.Task[None]]:
        """Ask for each payload that has not ended, and is not being asked for yet."""
        for followed in self._followed.values():
            if not followed.is_over and followed.key not in self._looking:
                looking = asyncio.create_task(self._look(followed))
                self._looking[followed.key] = looking
        return set(self._looking.values())

    async def _look(self, followed: Followed) -> None:
        """Ask for one payload, and say what has changed."""
        url = f"{self._address.retrieve}/{followed.payload}"
        try:
            answer = await exchange.ask(self._session, url)
        except UNREACHABLE as error:
            # Whether the client is there its load tells.
            log.debug("client %s: payload %d: %s", self._address.base, followed.payload, error)
            return
        finally:
            del self._looking[followed.key]
        if self._followed.get(followed.key) is not followed:
            return  # lost meanwhile
        state = followed.judge(self._version, answer)
        if state is not None and state.status not in PAYLOAD_ENDED and followed.is_due:
            self._errands.run(self._end(followed))
            reason = f"it ran for longer than {followed.limit_s:g} s (SERVICE_…_MAX_RUNTIME)"
            state = followed.failed("limit", reason, size=0)
        if state is not None:
            self._tell(followed, state)

    async def _end(self, followed: Followed) -> None:
        with contextlib.suppress(*UNREACHABLE):
            url = f"{self._address.kill}/{followed.payload}"
            async with self._session.post(url, timeout=SHORT):
                pass

    def _tell(self, followed: Followed, state: PayloadState) -> None:
        """Say how a payload is, where that is news."""
        bare = state.status is not PayloadStatus.COMPLETED
        if self._doubt and state.status in PAYLOAD_ENDED and bare:
            # It may be another payload's end. A zip would say whose it is.
            return
        if bare and self._version == "1":
            state = replace(state, result=None)  # it gives no files but with a zip
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
            resets, before = self._resets, self._highest
            try:
                marker = exchange.marker_of(self._here.server, *key)
                id = await exchange.post_job(
                    self._session, self._address, marker, job_input, folder
                )
            except OutcomeUnknown:
                self._doubt = True
                raise
            if id <= before and resets == self._resets:
                await self._begin_again(id)
            else:
                self._doubt = False
                self._highest = max(self._highest, id)
            directory = self._here.directory
            await directory.keep_original_ids(self._instance, self._highest, self._resets)
            followed = self._follow(job.id, job.attempt, id, limit_s)
            self._tell(followed, followed.state(PayloadStatus.PREPARED))
        return followed.said or followed.state(PayloadStatus.PREPARED)

    async def _begin_again(self, id: int) -> None:
        """Its ids went back: all that it had of this server before is lost, and is not asked for
        any more. That is written before anything relies on the new ids."""
        self._resets += 1
        self._highest = id
        self._doubt = False
        before = dict(self._followed)
        self._greet()
        for followed in before.values():
            reason = f"its client began its ids again at {id}"
            self._tell(followed, followed.lost(reason))
        while any(self._followed.get(key) is followed for key, followed in before.items()):
            self._dropped.clear()
            await self._dropped.wait()

    def _follow(self, job: int, attempt: int, payload: int, limit_s: float | None) -> Followed:
        followed = Followed(job, attempt, payload, limit_s)
        self._followed[followed.key] = followed
        return followed

    # --- 4 run

    async def kill(self, job: Job) -> None:
        """Ask the client to end a payload; the next look shows the end.

        Raises:
            ClientUnreachable: it did not answer, or cannot do that.
        """
        base = self._address.base
        if self._version == "1":
            problem = "a client of version 1 cannot end what it runs"
            raise ClientUnreachable(client=base, problem=problem)
        try:
            url = f"{self._address.kill}/{job.payload}"
            async with self._session.post(url, timeout=SHORT) as response:
                if response.status != 200:
                    problem = f"/kill answers {response.status}"
                    raise ClientUnreachable(client=base, problem=problem)
        except UNREACHABLE as error:
            raise ClientUnreachable(client=base, problem=str(error)) from error

    async def has_lost(self, _job: Job) -> bool:
        """It is asked for each payload again and again; what is lost is told then."""
        return False

    @contextlib.asynccontextmanager
    async def partial(self, job: Job) -> AsyncIterator[AsyncIterator[bytes]]:
        """The working directory of a payload as it is now, as a stream of zip. It comes here as a
        whole first, as only that shows whose it is.

        Raises:
            ClientUnreachable: it did not answer, or has no such payload.
        """
        target = self._here.tmp / f"partial-{job.id}-{uuid.uuid4().hex}"
        try:
            try:
                await self._download(RETRIEVE_PARTIAL, job.payload or 0, target)
                await self._inspect(target, job.payload or 0, job)
            except (Damaged, AnothersFiles) as error:
                raise ClientUnreachable(client=self._address.base, problem=str(error)) from error
            yield exchange.read_chunks(target)
        finally:
            target.unlink(missing_ok=True)

    # --- 5 get

    async def fetch(self, job: Job, payload: PayloadState, target: Path) -> PayloadState:
        """Write the files of a payload that has ended; gives it back as they show it.

        Raises:
            ClientUnreachable: they do not come just now.
            PayloadGone: they are another job's.
            Damaged: the zip cannot be read.
            Transient, OSError: they cannot be written here.
        """
        done = payload.status is PayloadStatus.COMPLETED
        try:
            packed = await self._download("" if done else RETRIEVE_PARTIAL, payload.id, target)
        except NoZip:
            if done:
                raise
            return replace(payload, result=None)
        code = await self._inspect(target, payload.id, job)
        payload = replace(payload, result=packed, exit_code=code)
        if done and code:
            # A client of version 1 does not look at it.
            reason = f"run.sh ended with exit status {code}"
            return replace(payload, status=PayloadStatus.FAILED, fault="user", reason=reason)
        return payload

    async def _download(self, route: str, payload: int, target: Path) -> PackedResult:
        start = self._address.base + route if route else self._address.retrieve
        return await exchange.download(
            self._session, self._address.base, f"{start}/{payload}", target
        )

    async def _inspect(self, target: Path, payload: int, job: Job) -> int | None:
        """Look whose zip it is; without a marker it is believed only while ids never went back,
        as it may be from before there were any."""
        expected = exchange.marker_of(self._here.server, job.id, job.attempt)
        trusted = self._resets == 0
        try:
            return await asyncio.to_thread(
                exchange.inspect, target, payload, expected, trusted=trusted
            )
        except AnothersFiles:
            self._here.refused[self._instance] = payload
            # Before the job is Queued again: it would be sent here.
            self._beat()
            raise
