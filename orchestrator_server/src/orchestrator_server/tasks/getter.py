"""5, get: follows what clients say of their payloads, and fetches and stores results."""

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.clients.outcomes import Damaged, PayloadGone
from orchestrator_server.clients.pool import Pool
from orchestrator_server.config import served_by
from orchestrator_server.store.database import Step
from orchestrator_server.store.files import Files
from orchestrator_server.store.job import End, Job, Result
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_server.store.room import Room
from orchestrator_server.tasks.losses import Losses
from orchestrator_server.terminating import Terminator
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import ClientUnreachable, NotFound, Transient
from orchestrator_shared.messages import PackedResult, PayloadState
from orchestrator_shared.status import ACTIVE, PAYLOAD_ENDED, TERMINAL, PayloadStatus, Status
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

Key = tuple[int, int]

#: How many large results are fetched from one client at a time.
FETCHES: Final = 4
#: How long to wait (seconds) before a result that could not be fetched is tried again.
AGAIN_FIRST: Final = 1.0
AGAIN_MOST: Final = 30.0
#: How often every client is asked to tell of all its payloads, beside its stream (seconds).
LIST_INTERVAL: Final = 60.0
#: How often the result of an attempt may arrive damaged until the attempt counts as lost.
DAMAGED_MOST: Final = 5

#: What a payload that is not over yet says of its job.
_LIVE = {PayloadStatus.PREPARED: Status.SUBMITTED, PayloadStatus.RUNNING: Status.RUNNING}


@dataclass
class _Deferred:
    """A result that could not be fetched: when it is tried again (monotonic seconds)."""

    client: Endpoint
    payload: PayloadState
    wait: float
    due: float
    #: How often it arrived damaged.
    damaged: int


class Getter:
    """Reacts to each message of a client at once; its loop does what no message will bring."""

    def __init__(
        self,
        jobs: Jobs,
        records: Records,
        files: Files,
        losses: Losses,
        terminator: Terminator,
        pool: Pool,
        room: Room,
        interval: float,
        plans: Callable[[Iterable[str]], Mapping[str, Step[Any]]],
    ) -> None:
        """`plans` gives what follows in the transaction of an end: other jobs go to its client."""
        self.task = BackgroundTask("getter", self.run_once, interval)
        self._jobs = jobs
        self._records = records
        self._files = files
        self._losses = losses
        self._terminator = terminator
        self._pool = pool
        self._list_at = time.monotonic() + LIST_INTERVAL
        self._room = room
        self._plans = plans
        self._getting: set[Key] = set()
        #: Payloads whose end is here as a whole, and about to be written.
        self._ending: set[Key] = set()
        self._deferred: dict[Key, _Deferred] = {}
        self._fetches: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(FETCHES)
        )
        self._errands = Errands("the getter could not take a message")

    async def run_once(self) -> int:
        """Notice clients that have gone silent, compare lists, try deferred results again."""
        await self._losses.look()
        now = time.monotonic()
        if now >= self._list_at:
            self._list_at = now + LIST_INTERVAL
            for client in self._pool.endpoints:
                self._errands.run(client.list_again())
        due = [key for key, deferred in self._deferred.items() if deferred.due <= now]
        for key in due:
            deferred = self._deferred[key]
            self._get(deferred.client, deferred.payload, b"")
        return 0

    async def stop(self) -> None:
        """Give up the transfers under way: after the restart they are begun again."""
        await self.task.stop()
        await self._errands.close(0)

    # --- what clients say

    def on_state(self, client: Endpoint, payload: PayloadState, result: bytes) -> None:
        """A payload is now so."""
        if payload.status in PAYLOAD_ENDED:
            self._get(client, payload, result)
        elif payload.status is PayloadStatus.CLEANED:
            self._get(client, payload, b"")
        elif payload.status in _LIVE and client.instance is not None:
            key = (payload.job, payload.attempt)
            observed = self._jobs.observe(
                *key,
                client.instance,
                payload.id,
                _LIVE[payload.status],
                # That it runs, and that it has ended, is one change then.
                unless=lambda: key in self._ending,
            )
            self._errands.run(self._observed(client, payload, observed))

    def on_listed(self, client: Endpoint) -> None:
        """It has told of every payload: what is missing may be lost."""
        self._errands.run(self._welcome(client))

    async def _welcome(self, client: Endpoint) -> None:
        await self._losses.welcome(client)
        if client.instance is not None:
            for job in await self._records.held_by(client.instance):
                if job.kill_requested:
                    self._errands.run(self._terminator.kill(job))

    async def _observed(
        self, client: Endpoint, payload: PayloadState, observed: "asyncio.Future[Job | None]"
    ) -> None:
        try:
            job = await observed
        except Transient as error:
            log.warning("job %d: %s", payload.job, error)
            await asyncio.sleep(AGAIN_FIRST)
            self.on_state(client, payload, b"")
            return
        if job is None and (payload.job, payload.attempt) in self._ending:
            return
        if job is None:
            job = await self._settle(client, payload)
            if job is not None and job.status is Status.PROCESSING:
                # It was adopted just now.
                self.on_state(client, payload, b"")
                return
        if job is not None and job.kill_requested:
            await self._terminator.kill(job)

    async def _settle(self, client: Endpoint, payload: PayloadState) -> Job | None:
        """Have the client drop a payload that nobody waits for any more; else give the job back.

        A payload of a job that this server does not know is left alone. A later attempt than this
        server knows of was sent after the backup was made that it was restored from: the job is
        taken up where it is now.
        """
        try:
            job = await self._records.get(payload.job)
        except NotFound:
            log.warning("client %s has a payload of job %d, which is unknown here",
                        client.name, payload.job)  # fmt: skip
            client.unknown.add((payload.job, payload.attempt))
            return None
        if job.status in ACTIVE and job.attempt == payload.attempt:
            return job
        if job.attempt < payload.attempt and job.status not in TERMINAL:
            return await self._adopt(client, job, payload.attempt)
        if job.attempt >= payload.attempt:
            await client.acknowledge(payload.job, payload.attempt)
        return None

    async def _adopt(self, client: Endpoint, job: Job, attempt: int) -> Job | None:
        if job.status is not Status.QUEUED:
            await self._jobs.requeue(job.id, job.attempt, f"attempt {attempt} is at {client.name}")
        if client.instance is None or client.start is None:
            return None
        await self._jobs.adopt(job.id, attempt, client.instance, client.start, client.name)
        # Another message of the same payload may have been first.
        now = await self._records.get(job.id)
        held = now.status in ACTIVE and now.attempt == attempt and now.instance == client.instance
        return now if held else None

    # --- the result

    def _get(self, client: Endpoint, payload: PayloadState, result: bytes) -> None:
        key = (payload.job, payload.attempt)
        if key not in self._getting:
            self._getting.add(key)
            if result or payload.result is None:
                self._ending.add(key)
            self._errands.run(self._take(key, client, payload, result))

    async def _take(self, key: Key, client: Endpoint, payload: PayloadState, result: bytes) -> None:
        try:
            await self._take_end(client, payload, result)
            self._deferred.pop(key, None)
        except Damaged as error:
            await self._take_damaged(key, client, payload, str(error))
        except (ClientUnreachable, Transient, OSError) as error:
            await self._defer(key, client, payload, str(error))
        finally:
            self._getting.discard(key)
            self._ending.discard(key)

    async def _take_end(self, client: Endpoint, payload: PayloadState, result: bytes) -> None:
        """Store the end of an attempt with its result, then have the client drop it."""
        job_id, attempt = payload.job, payload.attempt
        kept: Result | None = None
        if payload.status is PayloadStatus.CLEANED:
            if (job := await self._settle(client, payload)) is not None:
                await self._losses.lose_forgotten(client, job)
            return
        if payload.lost:
            if (job := await self._settle(client, payload)) is not None:
                lose = self._losses.hand_back if payload.handed_back else self._losses.lose
                await lose(client, job, payload.reason)
            return
        if payload.status is PayloadStatus.FAILED:
            job = await self._settle(client, payload)
            if job is None:
                return
            payload = self._blame(job, payload)
            if payload.fault == "infrastructure" and self._losses.may_try_again(job):
                await self._losses.lose(client, job, payload.reason)
                return
        packed = payload.result
        if packed is not None and result:
            kept = self._keep_small(payload, packed, result)
        elif packed is not None or payload.status is PayloadStatus.COMPLETED:
            job = await self._settle(client, payload)
            if job is None:
                return
            if packed is None:
                raise Damaged(payload=payload.id)
            if not job.delete_requested:
                try:
                    payload, kept = await self._fetch(client, job, payload, packed.size)
                except PayloadGone as error:
                    await self._losses.lose(client, job, str(error), spare=error.spares)
                    return
                # Of a client of the original only its files show how run.sh ended.
                payload = self._blame(job, payload)
                if payload.fault == "infrastructure" and self._losses.may_try_again(job):
                    await self._losses.lose(client, job, payload.reason)
                    return
        end = _end(payload)
        then = self._plans(served_by(self._pool.services, client.address))
        finished = await self._jobs.finish(
            job_id, attempt, end, payload=payload.id, result=kept, then=then
        )
        if finished is None and await self._settle(client, payload) is not None:
            # It was adopted just now.
            finished = await self._jobs.finish(
                job_id, attempt, end, payload=payload.id, result=kept
            )
        if finished is not None:
            await client.acknowledge(job_id, attempt)

    def _blame(self, job: Job, payload: PayloadState) -> PayloadState:
        """The end of a payload, with the fault that its service sees in its exit status."""
        service = self._pool.services.get(job.service)
        code = payload.exit_code
        if service is None or payload.fault != "user" or code not in service.retry_exit_codes:
            return payload
        why = f"run.sh ended with exit status {code}, which is in RETRY_EXIT_CODES"
        return replace(payload, fault="infrastructure", reason=why)

    def _keep_small(self, payload: PayloadState, packed: PackedResult, result: bytes) -> Result:
        """A result that came along on the stream; it is stored in the database."""
        self._room.check()
        if hashlib.sha256(result).hexdigest() != packed.sha256:
            raise Damaged(payload=payload.id)
        return Result(packed.size, packed.sha256, None, result)

    async def _fetch(
        self, client: Endpoint, job: Job, payload: PayloadState, size: int
    ) -> tuple[PayloadState, Result | None]:
        """Fetch a result into a file; it is durable before the record names it. Gives the payload
        back as its files show it."""
        target = self._files.tmp / f"result-{job.id}-{job.attempt}"
        async with self._fetches[client.name]:
            self._room.check(size)
            try:
                payload = await client.requests.fetch(job, payload, target)
                if (packed := payload.result) is None:
                    return payload, None
                file = await asyncio.to_thread(
                    self._files.keep_result, target, job.folder, job.attempt
                )
            finally:
                target.unlink(missing_ok=True)
        return payload, Result(packed.size, packed.sha256, file, None)

    async def _take_damaged(
        self, key: Key, client: Endpoint, payload: PayloadState, reason: str
    ) -> None:
        """Fetch it again; where that was of no use, the attempt is lost."""
        before = self._deferred.get(key)
        damaged = before.damaged + 1 if before else 1
        if damaged < DAMAGED_MOST:
            await self._defer(key, client, payload, reason, damaged)
            return
        self._deferred.pop(key, None)
        if (job := await self._settle(client, payload)) is not None:
            await self._losses.lose(client, job, reason)

    async def _defer(
        self,
        key: Key,
        client: Endpoint,
        payload: PayloadState,
        reason: str,
        damaged: int | None = None,
    ) -> None:
        """It waits as Unknown until the result can be fetched."""
        before = self._deferred.get(key)
        wait = min(2 * before.wait, AGAIN_MOST) if before else AGAIN_FIRST
        if damaged is None:
            damaged = before.damaged if before else 0
        due = time.monotonic() + wait
        self._deferred[key] = _Deferred(client, payload, wait, due, damaged)
        if client.instance is not None:
            problem = f"its result cannot be fetched yet: {reason}"
            await self._jobs.defer(*key, client.instance, payload.id, problem)


def _end(payload: PayloadState) -> End:
    """The end of an attempt, as its client tells it."""
    return End(
        status=Status(payload.status.value),
        exit_code=payload.exit_code,
        fault=payload.fault,
        reason=payload.reason,
        stderr_tail=payload.stderr_tail,
        wall_s=payload.wall_s,
        cpu_s=payload.cpu_s,
        max_rss=payload.max_rss,
    )
