"""7, clean: removes the files of jobs that have been over for long enough."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator_server.store.files import Files
from orchestrator_server.store.job import Job
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_shared.clocks import Clock
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

#: How many jobs of a service are cleaned in one go.
BATCH: Final = 200
#: A folder is looked at as left over only when it has not been touched for so long (seconds):
#: an upload moves its files into place a moment before it commits.
LEFT_OVER_AFTER: Final = 3600.0


class Cleaner:
    """Commits Cleaned, then removes: a record never names files that are gone."""

    def __init__(
        self,
        jobs: Jobs,
        records: Records,
        files: Files,
        max_ages: Mapping[str, float],
        max_age: float,
        interval: float,
        wall: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task = BackgroundTask("cleaner", self.run_once, interval)
        self._jobs = jobs
        self._records = records
        self._files = files
        self._max_ages = max_ages
        self._max_age = max_age
        self._wall = wall
        self._stopwatch = stopwatch
        self._clock = Clock(wall, stopwatch)
        self._orphans_due = stopwatch()

    @property
    def problem(self) -> str | None:
        """Why nothing is removed for its age; None while that is done."""
        return self._clock.problem

    async def run_once(self) -> int:
        """Clean what is due; gives back how many jobs were cleaned."""
        cleaned = 0
        for id in await self._records.to_delete(BATCH):
            cleaned += await self.clean(id, "deleted on request") is not None
        # A clock that was set back makes nothing older, and one set ahead not at once.
        now = min(self._clock.now(), self._wall())
        if not self._clock.trusted:
            return cleaned
        for service in await self._records.known_services():
            max_age = self._max_ages.get(service, self._max_age)
            for id in await self._records.expired(service, now - max_age, BATCH):
                cleaned += await self.clean(id, "kept for its time") is not None
        await self._look_for_orphans()
        return cleaned

    async def clean(self, id: int, reason: str) -> Job | None:
        """Clean one job; None if it has not ended, or is Cleaned."""
        job = await self._jobs.clean(id, reason)
        if job is not None:
            await asyncio.to_thread(self._files.remove, job.folder)
        return job

    async def _look_for_orphans(self) -> None:
        now = self._stopwatch()
        if now < self._orphans_due:
            return
        self._orphans_due = now + LEFT_OVER_AFTER
        folders = await asyncio.to_thread(self._files.folders, LEFT_OVER_AFTER)
        left = [folder for folder in folders if not await self._records.owns(folder)]
        await asyncio.to_thread(self._files.set_aside, left)
        await asyncio.to_thread(self._files.remove_orphans, self._max_age)
