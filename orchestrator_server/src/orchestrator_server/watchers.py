"""Who waits for a job or for the next event is told as soon as it is committed."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from orchestrator_server.store.database import Row


class Watchers:
    """The callers that wait; `publish` tells them what a transaction has changed."""

    def __init__(self) -> None:
        self._jobs: defaultdict[int, set[asyncio.Event]] = defaultdict(set)
        self._all: set[asyncio.Event] = set()
        self._closed = False

    def publish(self, changes: Sequence[Row]) -> None:
        """Wake whoever waits for one of these jobs, and whoever waits for any."""
        for change in changes:
            for event in self._jobs.get(change["job"], ()):
                event.set()
        for event in self._all:
            event.set()

    def close(self) -> None:
        """Wake everybody: the server stops, and each gets the state as it is."""
        self._closed = True
        for events in (*self._jobs.values(), self._all):
            for event in events:
                event.set()

    @property
    def closed(self) -> bool:
        """Whether nobody can wait any more."""
        return self._closed

    def watch(self, job: int | None) -> "Watch":
        """Watch a job, or all: begin before you look, so that no change falls in between."""
        return Watch(self._jobs[job] if job is not None else self._all, self, job)

    def forget(self, job: int) -> None:
        """Drop the entry of a job that nobody watches any more."""
        if not self._jobs[job]:
            del self._jobs[job]


class Watch:
    """One caller's watch; a context manager."""

    def __init__(self, among: set[asyncio.Event], watchers: Watchers, job: int | None) -> None:
        self._among = among
        self._watchers = watchers
        self._job = job
        self._event = asyncio.Event()

    def __enter__(self) -> "Watch":
        self._among.add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        self._among.discard(self._event)
        if self._job is not None:
            self._watchers.forget(self._job)

    async def next(self, seconds: float) -> bool:
        """Wait for the next change; False if none came within so many seconds."""
        if self._watchers.closed:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return not self._watchers.closed
