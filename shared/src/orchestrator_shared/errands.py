"""Work beside the loops: each errand is kept until it is done, and none fails unseen."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from orchestrator_shared.errors import OrchestratorError

log = logging.getLogger(__name__)


class Errands:
    """The errands of one part of a program."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._tasks: set[asyncio.Task[object]] = set()

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Do it now, beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def close(self, patience: float) -> None:
        """Give those under way so long (seconds) to finish; then they are cancelled."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, OrchestratorError):
            log.warning("%s: %s", self._part, error)
        else:
            log.error("%s: it failed inside", self._part, exc_info=error)
