"""7, clean: drops payloads whose server has what it needs of them, or never asks for it."""

import asyncio
import json
import logging
import os
from typing import Final

from orchestrator_client.config import Config
from orchestrator_client.payloads import Payload, Payloads
from orchestrator_client.runner import Runner
from orchestrator_shared.clocks import Clock
from orchestrator_shared.errands import Errands
from orchestrator_shared.folders import write_whole
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

#: How often it looks for payloads that nobody claims (seconds).
INTERVAL: Final = 60.0
#: How long a dropped attempt is remembered (seconds), so that a late submit runs nothing twice.
REMEMBERED: Final = 30 * 86400.0
#: How long removals under way may go on when the client stops (seconds).
CLOSE_PATIENCE: Final = 0.5


class Cleaner:
    """Remembers what it drops before it removes what says that it was taken."""

    def __init__(self, config: Config, payloads: Payloads, runner: Runner, clock: Clock) -> None:
        self.task = BackgroundTask("cleaner", self.run_once, INTERVAL)
        self._config = config
        self._payloads = payloads
        self._runner = runner
        self._clock = clock
        self._log = config.data_path / "cleaned.jsonl"
        self._unwanted: set[int] = set()
        #: What is Cleaned in the index and lies on the disk yet, with the time of that.
        self._dropped: list[tuple[Payload, float]] = []
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
        now = self._clock.now()
        if self._payloads.set_cleaned(payload.id, now) is None:
            return
        self._dropped.append((payload, now))
        if len(self._dropped) == 1:
            self._errands.run(self._remove_dropped())

    async def _remove_dropped(self) -> None:
        """Remove what has been dropped; what comes meanwhile goes together in the next turn."""
        while dropped := self._dropped[:]:
            try:
                await asyncio.to_thread(self._remove, dropped)
            finally:
                del self._dropped[: len(dropped)]

    def _remove(self, dropped: list[tuple[Payload, float]]) -> None:
        """Remember what was dropped, then remove it."""
        workdirs = [self._runner.workdir(payload.id) for payload, _ in dropped]
        for workdir in workdirs:
            # First, for the disk may have no room for another line.
            workdir.result.unlink(missing_ok=True)
        with open(self._log, "ab", opener=_private) as log_file:
            log_file.writelines(_entry(payload, at) for payload, at in dropped)
        for workdir in workdirs:
            try:
                workdir.remove()
            except OSError as error:
                log.error("payload %d cannot be removed: %s", workdir.id, error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _entry(payload: Payload, at: float) -> bytes:
    entry = {
        "id": payload.id,
        "server": payload.server,
        "job": payload.job,
        "attempt": payload.attempt,
        "service": payload.service,
        "at": at,
    }
    return json.dumps(entry).encode() + b"\n"
