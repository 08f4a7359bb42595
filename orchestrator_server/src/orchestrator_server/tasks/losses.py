"""5, get: what is lost with a client, and what is only out of sight."""

import logging
import time
from collections.abc import Mapping
from typing import Final

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


class Losses:
    """A payload is lost only if its client says so; a client that is silent has its jobs yet."""

    def __init__(
        self,
        jobs: Jobs,
        records: Records,
        pool: Pool,
        max_attempts: Mapping[str, int],
        lost_after: float,
    ) -> None:
        self._jobs = jobs
        self._records = records
        self._pool = pool
        self._max_attempts = max_attempts
        self._lost_after = lost_after
        #: Since when clients that have jobs do not answer (monotonic seconds).
        self._absent: dict[str, float] = {}
        #: Those that did not for so long that their jobs are Unknown.
        self._lost: set[str] = set()
        #: The last start of a client that lost all that it had before.
        self._died: dict[str, str] = {}

    async def lose(self, client: Endpoint, job: Job, reason: str | None = None) -> None:
        """An attempt is lost, as its client says."""
        await self._lose(job, reason or "its client no longer has it",
                         spare=await self._died_whole(client, job))  # fmt: skip
        await client.acknowledge(job.id, job.attempt)

    async def welcome(self, client: Endpoint) -> None:
        """A client is there, and has told of every payload: what is missing may be lost."""
        if client.instance is None:
            return
        self._absent.pop(client.instance, None)
        if client.instance in self._lost:
            self._lost.discard(client.instance)
            log.info("client %s is back", client.name)
        for instance in list(self._lost):
            await self._look_for_replaced(instance)
        for job in await self._records.held_by(client.instance):
            if (job.id, job.attempt) in client.told or job.payload is None:
                continue
            try:
                # Missing from the list is a reason to ask for it, never a proof.
                if await client.requests.has_lost(job):
                    await self.lose(client, job)
            except ClientUnreachable as error:
                log.warning("job %d: %s", job.id, error)

    async def look(self) -> None:
        """What a client holds that has been silent for too long is Unknown."""
        now = time.monotonic()
        bound = await self._records.bound_instances()
        self._lost.intersection_update(bound)
        self._absent = {
            instance: self._absent.get(instance, self._pool.last_seen(instance) or now)
            for instance in bound
            if self._pool.at(instance) is None
        }
        for instance, since in self._absent.items():
            if now - since >= self._lost_after and instance not in self._lost:
                name = self._pool.name(instance)
                count = await self._jobs.lose_sight(instance, f"{name} does not answer")
                self._lost.add(instance)
                log.warning("client %s is lost: %d jobs are Unknown", name, count)
                await self._look_for_replaced(instance)

    async def _look_for_replaced(self, instance: str) -> None:
        """What a client held at whose address another answers now is lost."""
        jobs = await self._records.active_at(instance)
        for job in jobs:
            if self._pool.is_replaced(job):
                reason = f"another client answers at {job.client}"
                await self._lose(job, reason, spare=len(jobs) > 1)

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
        elif job.lost + 1 < self._max_attempts.get(job.service, 1):
            await self._jobs.requeue(job.id, job.attempt, why, lost=True)
        else:
            end = End(Status.FAILED, fault="infrastructure", reason=why)
            await self._jobs.finish(job.id, job.attempt, end, lost=True)
