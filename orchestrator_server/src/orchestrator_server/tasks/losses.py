"""5, get: what is lost with a client, what is only out of sight, and what goes to another."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator_server.clients.directory import Directory
from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.clients.pool import Pool
from orchestrator_server.store.job import End, Job
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_shared.errors import ClientUnreachable
from orchestrator_shared.status import Status

log = logging.getLogger(__name__)

#: How often an attempt that was lost with its whole client is not counted.
SPARED_MOST: Final = 2
#: The most that a client has to be silent for because its job had run for long (seconds).
RAN_MOST: Final = 86400.0
#: How much silence counts from one look to the next (seconds): where more time has passed, it was
#: this server that did not turn.
STEP_MOST: Final = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a client may be silent (seconds of this server being up)."""

    #: Then its jobs are Unknown.
    lost_after: float
    #: Then they go to others; 0: never.
    gone_after: float
    #: Then they have failed; 0: never.
    give_up_after: float


class Losses:
    """A payload is lost only if its client says so; a client that is silent has its jobs yet."""

    def __init__(
        self,
        jobs: Jobs,
        records: Records,
        pool: Pool,
        directory: Directory,
        max_attempts: Mapping[str, int],
        patience: Patience,
        wake: Callable[[str], None],
    ) -> None:
        """`wake` is called with a service of which a job has to go to another client."""
        self._jobs = jobs
        self._records = records
        self._pool = pool
        self._directory = directory
        self._max_attempts = max_attempts
        self._patience = patience
        self._wake = wake
        self._looked = time.monotonic()
        #: For how long clients that have jobs do not answer, in this run of the server (seconds).
        self._absent: dict[str, float] = {}
        #: Those that did not for so long that their jobs are Unknown.
        self._lost: set[str] = set()
        #: The last start of a client that lost all that it had before.
        self._died: dict[str, str] = {}

    async def lose(
        self, client: Endpoint, job: Job, reason: str | None = None, *, spare: bool = False
    ) -> None:
        """An attempt is lost, as its client says. `spare`: for no fault of the job's."""
        spare = await self._died_whole(client, job) or spare
        await self._lose(job, reason or "its client no longer has it", spare=spare)
        await client.acknowledge(job.id, job.attempt)

    async def lose_forgotten(self, client: Endpoint, job: Job) -> None:
        """The client was told to drop an attempt before this server forgot that: it was restored
        from a backup, and nothing of the attempt is left."""
        await self._lose(job, "it had ended before the restore", spare=True)
        await client.acknowledge(job.id, job.attempt)

    async def hand_back(self, client: Endpoint, job: Job, reason: str | None) -> None:
        """Its client has given an attempt up as it stops: none is used."""
        await self._jobs.requeue(job.id, job.attempt, f"handed back: {reason or 'it stops'}")
        await client.acknowledge(job.id, job.attempt)

    def may_try_again(self, job: Job) -> bool:
        """Whether an attempt of a job may be lost without that being its end."""
        return job.lost + 1 < self._max_attempts.get(job.service, 1)

    async def welcome(self, client: Endpoint) -> None:
        """A client is there, and has told of every payload: what is missing may be lost."""
        if client.instance is None:
            return
        if self._directory.is_draining(client.instance):
            await client.hand_back()
        self._absent.pop(client.instance, None)
        if client.instance in self._lost:
            self._lost.discard(client.instance)
            log.info("client %s is back", client.name)
            await self._jobs.keep_from_handover(client.instance)
        for job in await self._records.held_by(client.instance):
            if (job.id, job.attempt) in client.told or job.payload is None:
                continue
            try:
                # Missing from the list is a reason to ask for it, never a proof.
                if await client.requests.has_lost(job):
                    await self.lose(client, job)
            except ClientUnreachable as error:
                log.warning("job %d: %s", job.id, error)

    # --- silence

    async def look(self) -> None:
        """What a client has that is silent for too long is Unknown, then another's, then lost."""
        now = time.monotonic()
        step, self._looked = min(now - self._looked, STEP_MOST), now
        bound = await self._records.bound_instances()
        self._lost.intersection_update(bound)
        absent = {instance for instance in bound if self._pool.at(instance) is None}
        for instance in set(self._absent) - absent:
            del self._absent[instance]
        for instance in absent:
            more = step
            if instance not in self._absent:
                # A stream that stood open and silent until now was silent all the while.
                since = self._pool.last_seen(instance)
                more = min(now - since, self._patience.lost_after) if since else 0.0
            self._absent[instance] = self._absent.get(instance, 0.0) + more
            # A client that answers, and is out, comes back once somebody has seen to it: its jobs
            # wait for that.
            why_out = self._pool.why_out(instance)
            silence = self._directory.add_silence(instance, 0.0 if why_out else more)
            # Each start of this server gives it time to come.
            if self._absent[instance] >= self._patience.lost_after:
                await self._lose_sight(instance, why_out or "it does not answer")
                await self._let_go(instance, 0.0 if why_out else silence)

    async def _lose_sight(self, instance: str, why: str) -> None:
        if instance in self._lost:
            return
        self._lost.add(instance)
        name = self._pool.name(instance)
        count = await self._jobs.lose_sight(instance, f"client {name}: {why}")
        log.warning("client %s is lost: %d jobs are Unknown: %s", name, count, why)

    async def _let_go(self, instance: str, silence: float) -> None:
        """Look which jobs of a lost client need not wait for it any more."""
        known = self._directory.get(instance)
        by_hand = known is not None and bool(known.gone)
        jobs = await self._records.active_at(instance)
        for job in jobs:
            if self._pool.is_replaced(job):
                reason = f"another client answers at {job.client}"
                await self._lose(job, reason, spare=len(jobs) > 1)
            elif 0 < self._patience.give_up_after <= silence:
                why = f"its client {job.client} was silent for {silence:.0f} s"
                end = End(Status.FAILED, fault="infrastructure", reason=why)
                await self._jobs.finish(job.id, job.attempt, end, lost=True)
            elif by_hand or self._is_gone(job, silence):
                await self._hand_over(job)

    def _is_gone(self, job: Job, silence: float) -> bool:
        """Whether its client has been silent for long enough, and for as long as it had run."""
        ran = 0.0
        if job.started_at is not None:
            ran = job.changed_at - self._patience.lost_after - job.started_at
        return 0 < self._patience.gone_after <= silence and silence >= min(ran, RAN_MOST)

    async def _hand_over(self, job: Job) -> None:
        if job.kill_requested:
            # Nobody is to begin it again.
            await self._jobs.requeue(job.id, job.attempt, f"terminated: {job.client} is gone")
        elif not job.handover and await self._jobs.hand_over(job.id, job.attempt):
            log.warning("client %s is gone: job %d goes to another", job.client, job.id)
            self._wake(job.service)

    # --- what is lost

    async def _died_whole(self, client: Endpoint, job: Job) -> bool:
        """Whether a client has lost several payloads at once, under a new start."""
        if client.instance is None or client.start is None or job.start == client.start:
            return False
        if self._died.get(client.instance) != client.start:
            held = await self._records.active_at(client.instance)
            if sum(other.start != client.start for other in held) < 2:
                return False
            self._died[client.instance] = client.start
        return True

    async def _lose(self, job: Job, reason: str, *, spare: bool) -> None:
        """Another attempt, or where they are used up, the end."""
        why = f"attempt {job.attempt} was lost: {reason}"
        if spare and job.spared < SPARED_MOST:
            await self._jobs.requeue(job.id, job.attempt, why, spared=True)
        elif self.may_try_again(job):
            await self._jobs.requeue(job.id, job.attempt, why, lost=True)
        else:
            end = End(Status.FAILED, fault="infrastructure", reason=why)
            await self._jobs.finish(job.id, job.attempt, end, lost=True)
