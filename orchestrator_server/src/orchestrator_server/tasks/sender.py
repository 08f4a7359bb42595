"""3, send: hands Queued jobs to clients, as quota and free slots allow."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable
from functools import partial

from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.clients.outcomes import (
    NotReceived,
    OutcomeUnknown,
    Outdated,
    Refused,
    RefusedForNow,
    SubmitError,
)
from orchestrator_server.clients.pool import Pool
from orchestrator_server.queue.dispatch import dispatch
from orchestrator_server.store.database import Database, Step
from orchestrator_server.store.files import Files, InputDamaged
from orchestrator_server.store.job import End, Job, JobInput
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records, read_input
from orchestrator_shared.errors import OrchestratorError
from orchestrator_shared.status import Status
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)


class Sender:
    """Looks for what may go when woken for a service, and at its interval for all."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        records: Records,
        files: Files,
        pool: Pool,
        interval: float,
    ) -> None:
        self.task = BackgroundTask("sender", self.run_once, interval)
        self._database = database
        self._jobs = jobs
        self._records = records
        self._files = files
        self._pool = pool
        self._interval = interval
        self._look_at = 0.0
        self._stopping = False
        self._woken: set[str] = set()
        #: What a transaction under way lets go: jobs, and their files (None: these are gone).
        self._planned: dict[tuple[int, int], tuple[Job, JobInput | None]] = {}
        self._sending: dict[tuple[int, int], asyncio.Task[None]] = {}

    def wake(self, service: str) -> None:
        """A job of this service may go now."""
        self._woken.add(service)
        self.task.wake()

    def look(self) -> None:
        """Any job may go now, and some may have to be sent again."""
        self._look_at = 0.0
        self.task.wake()

    async def run_once(self) -> int:
        """Dispatch once; gives back how many jobs went."""
        services, self._woken = self._woken, set()
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._interval
            services.update(await self._records.services_waiting())
            await self._send_again()
        return sum([await self._dispatch(service) for service in sorted(services)])

    async def stop(self) -> None:
        """Give up the submits under way: after the restart they are sent again."""
        self._stopping = True
        await self.task.stop()
        for sending in list(self._sending.values()):
            sending.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)

    def plans(self, services: Iterable[str]) -> dict[str, Step[int]]:
        """The steps that let jobs of these services go, where clients take some. They follow in
        the transaction of an upload or of an end: that saves the next job a commit of its own."""
        planned = ((service, self._plan(service)) for service in services)
        return {service: step for service, step in planned if step is not None}

    def _plan(self, service: str) -> Step[int] | None:
        """The step that lets jobs of a service go, and gives back how many; None where no client
        takes any. They are sent as soon as it is committed (`on_processing`)."""
        view = self._pool.view(service)
        if not view.offers or self._pool.settles(service):
            return None
        limits = self._pool.limits(service)

        def step(connection: sqlite3.Connection) -> int:
            # By now, and not when it was planned: no job goes before it came.
            now = time.time()
            jobs = dispatch(connection, service, limits, view.offers, view.reachable, now)
            for job in jobs:
                # Read here, as it is at hand: it saves each job a visit to another thread.
                self._planned[job.id, job.attempt] = (job, read_input(connection, job.id))
            return len(jobs)

        return step

    def on_processing(self, id: int, attempt: int) -> None:
        """A job has been let go: send it."""
        planned = self._planned.pop((id, attempt), None)
        if planned is not None and not self._stopping:
            self._begin(*planned)

    async def _dispatch(self, service: str) -> int:
        step = self._plan(service)
        return await self._database.write(step) if step else 0

    async def _send_again(self) -> None:
        """Submits whose outcome nobody knows: the same attempt to the same client, again."""
        for client in self._pool.endpoints:
            if not client.listed or client.instance is None or client.backing_off:
                continue
            for job in await self._records.processing_at(client.instance):
                if self._is_heard_of(job, client):
                    continue
                job_input = await self._records.input(job.id)
                # What has ended meanwhile, and was acknowledged, is not told of any more either.
                now = await self._records.get(job.id)
                moved_on = (now.status, now.attempt) != (job.status, job.attempt)
                if moved_on or self._is_heard_of(job, client):
                    continue
                if now.kill_requested:
                    # The client has told of all it holds, and this job is not among it.
                    await self._jobs.requeue(job.id, job.attempt, "terminated before it was sent")
                else:
                    self._begin(job, job_input, again=True)

    def _is_heard_of(self, job: Job, client: Endpoint) -> bool:
        """Whether a submit is under way, or its client has told of it."""
        key = (job.id, job.attempt)
        return key in self._sending or key in self._planned or key in client.told

    def _begin(self, job: Job, job_input: JobInput | None, *, again: bool = False) -> None:
        """Hand over a job in a task of its own: no client waits for another."""
        key = (job.id, job.attempt)
        self._sending[key] = asyncio.create_task(self._send(job, job_input, again=again))
        self._sending[key].add_done_callback(partial(self._sent, key))

    def _sent(self, key: tuple[int, int], task: asyncio.Task[None]) -> None:
        del self._sending[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Nothing was written of the outcome: the same attempt is sent again.
            traceback = None if isinstance(error, OrchestratorError) else error
            log.error("job %d: its submit failed: %s", key[0], error, exc_info=traceback)

    async def _send(self, job: Job, job_input: JobInput | None, *, again: bool) -> None:
        client = self._pool.at(job.instance)
        try:
            await self._submit(job, job_input, client)
        except Outdated as error:
            await self._requeue(job, error, held=error.held)
        except (NotReceived, RefusedForNow) as error:
            if again:
                # It says nothing of the first submit, which may be on its way yet.
                log.info("job %d: %s; the same attempt is sent again", job.id, error)
            else:
                await self._requeue(job, error)
        except (Refused, InputDamaged) as error:
            end = End(Status.FAILED, fault="infrastructure", reason=str(error))
            await self._jobs.finish(job.id, job.attempt, end, unsent=True)
        except OutcomeUnknown as error:
            log.info("job %d: %s; the same attempt is sent again", job.id, error)

    async def _requeue(self, job: Job, error: SubmitError, held: int = 0) -> None:
        await self._jobs.requeue(job.id, job.attempt, str(error), unsent=True, held=held)

    async def _submit(self, job: Job, job_input: JobInput | None, client: Endpoint | None) -> None:
        if client is None:
            raise NotReceived(problem=f"{job.client} is not there")
        if job_input is None:
            raise InputDamaged(problem="its record is gone")
        folder = self._files.input_folder(job.folder)
        if job_input.body is None:
            await asyncio.to_thread(self._files.check_input, job.folder, job_input.sizes)
        service = self._pool.services.get(job.service)
        try:
            await client.submit(job, job_input, folder, service.max_runtime if service else None)
        except RefusedForNow as error:
            if error.damaged:
                # On the way, or before: what lies here must be what was uploaded.
                await asyncio.to_thread(self._files.verify_input, job.folder, job_input)
            raise
