"""7, clean: drops payloads whose server has what it needs of them, or never asks for it."""

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Final

from orchestrator_client.config import Config
from orchestrator_client.payloads import Payload, Payloads
from orchestrator_client.runner import Runner, has_ended
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
            await self._drop(payload)
        return len(old)

    async def close(self) -> None:
        """Stop; what was to be removed is removed once it is acknowledged again."""
        await self.task.stop()
        await self._errands.close(CLOSE_PATIENCE)

    async def acknowledge(self, server: str, job: int, attempt: int) -> None:
        """A server has what it needs of an attempt, or does not want it: end it, drop it."""
        payload = self._payloads.of_attempt(server, job, attempt)
        if payload is None:
            return
        if has_ended(payload):
            await self._drop(payload)
            return
        self._unwanted.add(payload.id)
        await self._runner.kill(payload.id)

    def on_change(self, payload: Payload) -> None:
        """Drop a payload that nobody wants as soon as it has ended."""
        if payload.id in self._unwanted and has_ended(payload):
            self._unwanted.discard(payload.id)
            self._errands.run(self._drop(payload))

    async def _drop(self, payload: Payload) -> None:
        """Remove the files of an ended payload."""
        now = self._clock.now()
        if self._payloads.set_cleaned(payload.id, now) is None:
            return
        entry = {
            "id": payload.id,
            "server": payload.server,
            "job": payload.job,
            "attempt": payload.attempt,
            "service": payload.service,
            "at": now,
        }
        workdir = self._runner.workdir(payload.id)

        def remove() -> None:
            # First, for the disk may have no room for another line.
            workdir.result.unlink(missing_ok=True)
            _append(self._log, json.dumps(entry).encode() + b"\n")
            workdir.remove()

        await asyncio.to_thread(remove)


def _append(path: Path, line: bytes) -> None:
    # One write of a short line: several threads do not mix theirs.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
