"""Ending a job because somebody asks for it."""

import asyncio
import logging
import time
from typing import Final

from orchestrator_server.clients.pool import Pool
from orchestrator_server.store.job import Job
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_server.watchers import Watch, Watchers
from orchestrator_shared.errors import ClientUnreachable
from orchestrator_shared.status import ACTIVE, TERMINAL

log = logging.getLogger(__name__)

#: How much longer than the client's KILL_GRACE (seconds) a caller waits for the end.
PATIENCE: Final = 5.0
#: How long to wait (seconds) before a client that did not hear the wish is told again.
AGAIN_FIRST: Final = 1.0
AGAIN_MOST: Final = 30.0


class Terminator:
    """Commits the wish first, then tells the client; the client decides what the end is."""

    def __init__(self, jobs: Jobs, records: Records, pool: Pool, watchers: Watchers) -> None:
        self._jobs = jobs
        self._records = records
        self._pool = pool
        self._watchers = watchers
        self._killing: set[tuple[int, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def terminate(self, id: int, user_id: int | None) -> Job:
        """End a job; gives it back as it is then. Where the client could not be asked or did not
        decide in time, it is still active, and the wish is kept.

        Raises:
            NotFound: there is none, or it is another user's.
            AlreadyEnded: it had.
        """
        with self._watchers.watch(id) as watch:
            job = await self._jobs.request_kill(id, user_id, "terminated on request")
            client = self._pool.at(job.instance)
            end = time.monotonic() + PATIENCE + (client.kill_grace if client else 0.0)
            kill = asyncio.create_task(self.kill(job))
            self._tasks.add(kill)
            kill.add_done_callback(self._tasks.discard)
            while job.status not in TERMINAL:
                if not await watch.next(max(0.0, end - time.monotonic())):
                    break
                job = await self._records.get(id)
            return job

    async def kill(self, job: Job) -> None:
        """Tell the client that holds a job to end it, again and again until it has heard. A job
        whose submit has no outcome yet is told of once it has; one whose client is away, once
        that is back."""
        key = (job.id, job.attempt)
        if job.payload is None or key in self._killing:
            return
        self._killing.add(key)
        try:
            with self._watchers.watch(job.id) as watch:
                await self._tell(job, watch)
        finally:
            self._killing.discard(key)

    async def _tell(self, job: Job, watch: Watch) -> None:
        attempt, delay = job.attempt, AGAIN_FIRST
        while job.status in ACTIVE and job.attempt == attempt and not self._watchers.closed:
            client = self._pool.at(job.instance)
            if client is None:
                return
            try:
                await client.requests.kill(job)
                return
            except ClientUnreachable as error:
                log.warning("job %d: %s", job.id, error)
            await watch.next(delay)
            delay = min(2 * delay, AGAIN_MOST)
            job = await self._records.get(job.id)
