"""7, clean: drops payloads whose server has what it needs of them, or never asks for it."""

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from orchestrator_client.config import Config
from orchestrator_client.payloads import Payload, Payloads
from orchestrator_client.runner import Runner
from orchestrator_shared.clocks import Clock
from orchestrator_shared.errands import Errands
from orchestrator_shared.folders import write_whole
from orchestrator_shared.protocol import INLINE_LIMIT
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

#: How often it looks for payloads that nobody claims (seconds).
INTERVAL: Final = 60.0
#: How long a dropped attempt is remembered (seconds), so that a late submit runs nothing twice.
REMEMBERED: Final = 30 * 86400.0
#: How long removals under way may go on when the client stops (seconds).
CLOSE_PATIENCE: Final = 0.5
#: How often it is looked whether nothing runs (seconds), and after how long that does not matter.
QUIET_LOOK: Final = 0.1
QUIET_PATIENCE: Final = 10.0


class Dropped(Struct, frozen=True):
    """A payload that was dropped: a line of cleaned.jsonl. `at` is the time of that (clocks.py)."""

    id: int
    server: str
    job: int | None
    attempt: int | None
    service: str
    at: float


class Cleaner:
    """Remembers what it drops before it removes what says that it was taken."""

    def __init__(self, config: Config, payloads: Payloads, runner: Runner, clock: Clock) -> None:
        self.task = BackgroundTask("cleaner", self.run_once, INTERVAL)
        self._config = config
        self._payloads = payloads
        self._runner = runner
        self._clock = clock
        self._log = config.data_path / "cleaned.jsonl"
        #: What is small, is Cleaned in the index, and lies on the disk yet.
        self._dropped: list[Dropped] = []
        self._removing = False
        self._stopping = asyncio.Event()
        self._logging = threading.Lock()
        self._unwanted: set[int] = set()
        self._errands = Errands("a payload could not be removed")

    def remember(self) -> None:
        """Take what earlier starts have dropped into the index; forget what is long ago."""
        lines = self._log.read_bytes().splitlines(keepends=True) if self._log.exists() else []
        kept = []
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["at"] > self._clock.now() - REMEMBERED:
                    self._payloads.insert_cleaned(**entry)
                    kept.append(line.rstrip(b"\n") + b"\n")
            except (ValueError, KeyError, TypeError):
                log.warning("%s has a line that is cut short: passed over", self._log)
        if kept != lines:
            write_whole(self._log, b"".join(kept), durable=False)

    async def run_once(self) -> int:
        """Drop what has been kept for its time; gives back how many that were."""
        if not self._clock.trusted:
            return 0
        now = self._clock.now()
        self._payloads.forget(now - REMEMBERED)
        old = self._payloads.ended_before(
            now - self._config.max_age, now - self._config.unclaimed_max_age
        )
        for payload in old:
            log.info("payload %d has been kept for its time", payload.id)
            self._drop(payload)
        return len(old)

    async def close(self) -> None:
        """Stop; what was to be removed is removed once it is acknowledged again."""
        self._stopping.set()
        await self.task.stop()
        await self._errands.close(CLOSE_PATIENCE)

    def acknowledge(self, server: str, job: int, attempt: int) -> None:
        """A server has what it needs of an attempt, or does not want it: end it, drop it."""
        payload = self._payloads.of_attempt(server, job, attempt)
        if payload is None:
            return
        if payload.has_ended:
            self._drop(payload)
            return
        self._unwanted.add(payload.id)
        self._errands.run(self._runner.kill(payload.id))

    def on_change(self, payload: Payload) -> None:
        """Drop a payload that nobody wants as soon as it has ended."""
        if payload.id in self._unwanted and payload.has_ended:
            self._unwanted.discard(payload.id)
            self._drop(payload)

    def _drop(self, payload: Payload) -> None:
        """An ended payload is nobody's any more: its files go."""
        dropped = Dropped(
            payload.id,
            payload.server,
            payload.job,
            payload.attempt,
            payload.service,
            self._clock.now(),
        )
        if self._payloads.set_cleaned(payload.id, dropped.at) is None:
            return
        size = payload.result_size
        if size is None or size > INLINE_LIMIT:
            self._errands.run(asyncio.to_thread(self._remove, [dropped]))
            return
        self._dropped.append(dropped)
        if not self._removing:
            self._removing = True
            self._errands.run(self._remove_small())

    async def _remove_small(self) -> None:
        """Remove what is small once nothing runs, or after a while.

        A burst of short jobs is through sooner by a third: ext4 makes no new file in the place of
        one that was removed in the last seconds, and passes over all these each time.
        """
        try:
            while self._dropped:
                deadline = time.monotonic() + QUIET_PATIENCE
                stops = await self._stops_within(QUIET_LOOK)
                while not stops and self._payloads.active() and time.monotonic() < deadline:
                    stops = await self._stops_within(QUIET_LOOK)
                dropped, self._dropped = self._dropped, []
                try:
                    await asyncio.to_thread(self._remove, dropped)
                except OSError as error:
                    log.error("what was dropped cannot be removed yet: %s", error)
                    self._dropped = dropped + self._dropped
                    if await self._stops_within(QUIET_PATIENCE):
                        return
        finally:
            self._removing = False

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    def _remove(self, dropped: Sequence[Dropped]) -> None:
        """Remember what was dropped, then remove it."""
        workdirs = [self._runner.workdir(one.id) for one in dropped]
        for workdir in workdirs:
            # First, for the disk may have no room for another line.
            Path(workdir.result).unlink(missing_ok=True)
        self._append(b"".join(msgspec.json.encode(one) + b"\n" for one in dropped))
        for workdir in workdirs:
            try:
                workdir.remove()
            except OSError as error:
                log.error("payload %d cannot be removed: %s", workdir.id, error)

    def _append(self, lines: bytes) -> None:
        """Write lines to the log as a whole, or not at all.

        Raises:
            OSError: the disk is full, or fails.
        """
        with self._logging, open(self._log, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(lines)
                while left:
                    # A disk that is nearly full takes a part, and says nothing.
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
