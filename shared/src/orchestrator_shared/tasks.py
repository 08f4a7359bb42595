"""The background task: runs at its interval or when woken, and says how it fares."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from orchestrator_shared.errors import Transient

log = logging.getLogger(__name__)

#: A tick that takes longer than this (seconds) counts as hanging.
OVERDUE_AFTER = 60.0
#: How long stop() waits for the tick under way (seconds) before it cancels it.
STOP_PATIENCE = 0.5


class BackgroundTask:
    """A loop around `run_once`, which holds the logic and returns how many it handled.

    It sleeps until woken, or for `interval` seconds, whichever comes first; after a tick that
    handled something it looks again at once. An exception is logged and counted, and the loop
    goes on. It can be started and stopped more than once.
    """

    def __init__(self, name: str, run_once: Callable[[], Awaitable[int]], interval: float) -> None:
        self.name = name
        self.errors = 0
        self.last_error: str | None = None
        self._run_once = run_once
        self._interval = interval
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._tick_began: float | None = None

    def wake(self) -> None:
        """There is work: look now."""
        self._wake.set()

    @property
    def problem(self) -> str | None:
        """What is wrong with the loop: it died or hangs; None while it turns."""
        if self._task is None or self._stopping:
            return None
        if self._task.done():
            return f"the {self.name} died"
        if self._tick_began is not None and time.monotonic() - self._tick_began > OVERDUE_AFTER:
            return f"the {self.name} hangs for {time.monotonic() - self._tick_began:.0f} s"
        return None

    async def start(self, _app: web.Application | None = None) -> None:
        """Begin to turn: an on_startup hook."""
        if self._task is None:
            self._stopping = False
            self._task = asyncio.create_task(self._turn(), name=self.name)

    async def stop(self, _app: web.Application | None = None) -> None:
        """End the loop: an on_cleanup hook. The tick under way gets a moment to finish."""
        task = self._task
        if task is None:
            return
        self._stopping = True
        self.wake()
        done, _ = await asyncio.wait({task}, timeout=STOP_PATIENCE)
        if not done:
            task.cancel()
            # Not `await task`: its end by cancellation is not a cancellation of who waits here.
            await asyncio.wait({task})
        self._task = None

    async def _turn(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._tick_began = time.monotonic()
            try:
                handled = await self._run_once()
            except Exception as error:
                handled = 0
                self.errors += 1
                self.last_error = f"{type(error).__name__}: {error}"
                if isinstance(error, Transient):
                    log.warning("the %s goes on: %s", self.name, error)
                else:
                    log.exception("the %s failed, and goes on", self.name)
            finally:
                self._tick_began = None
            if handled == 0 and not self._stopping:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._interval)
