"""4, run: Prepared → Running → ended, SLOTS at a time, oldest first."""

import asyncio
import logging
import os
from functools import partial
from typing import Final

from orchestrator_client.config import Config
from orchestrator_client.errands import Errands
from orchestrator_client.executors.base import Executor, RunEnd
from orchestrator_client.packers import Packers
from orchestrator_client.payloads import Payload, PayloadEnd, Payloads
from orchestrator_client.verdict import KILLED_BEFORE_START, NO_RUN_SH, cannot_be_packed, judge
from orchestrator_client.workdir import Workdir
from orchestrator_shared.answers import NO_SPACE
from orchestrator_shared.errors import Transient
from orchestrator_shared.status import PAYLOAD_ENDED, PayloadStatus
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

#: How long to wait (seconds) before packing is tried again on a disk that is full.
PACK_AGAIN: Final = 5.0
#: How often packing is tried where the disk has room and something else is wrong.
PACK_TRIES: Final = 12
#: How long packing under way may go on when the client stops (seconds).
CLOSE_PATIENCE: Final = 0.3
#: How much of run.sh is looked at (bytes) to tell its line ends.
RUN_SH_HEAD: Final = 4096


class Runner:
    """Starts what is Prepared while slots are free; packs what has ended."""

    def __init__(self, config: Config, payloads: Payloads, executor: Executor) -> None:
        self.task = BackgroundTask("runner", self.run_once, config.runner_interval)
        self._config = config
        self._payloads = payloads
        self._executor = executor
        #: Payloads whose run.sh takes a slot.
        self._running: set[int] = set()
        #: Payloads that are being sealed: no other end can come to them.
        self._sealing: set[int] = set()
        self._packers = Packers()
        self._errands = Errands("a payload could not be brought to its end")
        self._ends: dict[int, asyncio.Event] = {}

    @property
    def slots_in_use(self) -> int:
        """How many payloads run."""
        return len(self._running)

    async def open(self) -> None:
        """Take up again what an earlier start has begun."""
        running = {
            payload.id: self.workdir(payload.id)
            for payload in self._payloads.with_status(PayloadStatus.RUNNING)
        }
        self._running.update(running)
        await self._executor.open(self, running)

    async def close(self) -> None:
        """Stop; what runs, runs on, and what is being packed is packed at the next start."""
        await self.task.stop()
        await self._executor.close()
        await self._errands.close(CLOSE_PATIENCE)
        self._packers.close()

    async def run_once(self) -> int:
        """Start what can be started; gives back how many that were."""
        started = 0
        while len(self._running) < self._config.slots:
            payload = self._payloads.oldest_prepared()
            if payload is None:
                break
            await self._start(payload)
            started += 1
        return started

    def workdir(self, id: int) -> Workdir:
        """The directories of a payload."""
        return Workdir(self._config.data_path, id)

    async def kill(self, id: int) -> bool:
        """End a payload because somebody asks for it; False if it has, or will have, another end.

        Raises:
            NotFound: there is none.
            Transient: nobody knows; it can be asked again.
        """
        payload = self._payloads.get(id)
        if payload.status is PayloadStatus.PREPARED and not payload.killed:
            self._payloads.set_killed(id)
            await self._seal(id, KILLED_BEFORE_START)
        elif id in self._running and await self._executor.kill(id, "operator"):
            self._payloads.set_killed(id)
        payload = self._payloads.get(id)
        under_way = payload.killed and not has_ended(payload)
        return under_way or payload.status is PayloadStatus.KILLED

    async def ended(self, id: int) -> None:
        """Wait until a payload has ended."""
        if not has_ended(self._payloads.get(id)):
            await self._ends.setdefault(id, asyncio.Event()).wait()

    # --- what the executor tells

    def on_started(self, id: int, pid: int) -> None:
        """run.sh runs."""
        self._payloads.set_pid(id, pid)

    def on_ended(self, id: int, end: RunEnd) -> None:
        """run.sh has ended: its slot is free, and what it left is packed."""
        self._running.discard(id)
        self.task.wake()
        self._errands.run(self._judge(id, end))

    # ---

    async def _start(self, payload: Payload) -> None:
        workdir = self.workdir(payload.id)
        if not workdir.has_run_sh:
            self._payloads.set_ended(payload.id, NO_RUN_SH)
            try:
                workdir.write_end(NO_RUN_SH)
            except OSError as error:
                log.error("payload %d will be found Invalid again: %s", payload.id, error)
            return
        self._payloads.set_running(payload.id)
        self._running.add(payload.id)
        try:
            await self._executor.start(
                workdir, self._environment(payload, workdir), self._config.job_timeout
            )
        except (OSError, Transient) as error:
            self.on_ended(payload.id, RunEnd(error=f"run.sh could not be started: {error}"))

    def _environment(self, payload: Payload, workdir: Workdir) -> dict[str, str]:
        """All that run.sh gets: nothing else of the client's environment."""
        given = {name: os.environ[name] for name in self._config.job_env if name in os.environ}
        return {
            **given,
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(workdir.home),
            "TMPDIR": str(workdir.tmp),
            "ORCH_JOB_ID": str(payload.job if payload.job is not None else payload.id),
            "ORCH_ATTEMPT": str(payload.attempt or 1),
            "ORCH_SERVICE": payload.service,
            "ORCH_CPUS": str(self._config.cpus_per_slot),
        }

    async def _judge(self, id: int, end: RunEnd) -> None:
        windows = False
        if end.exit_code:
            windows = await asyncio.to_thread(_has_windows_lines, self.workdir(id))
        verdict = judge(end, windows_lines=windows, timeout=self._config.job_timeout)
        await self._seal(id, verdict)

    async def _seal(self, id: int, end: PayloadEnd) -> None:
        """Pack what a payload leaves; only then has it ended."""
        if id in self._sealing or has_ended(self._payloads.get(id)):
            return
        self._sealing.add(id)
        try:
            sealed = await self._pack(self.workdir(id), end)
            self._payloads.set_ended(id, sealed)
        finally:
            self._sealing.discard(id)
        if waited_for := self._ends.pop(id, None):
            waited_for.set()
        await self._packers.do(self.workdir(id).remove_work)

    async def _pack(self, workdir: Workdir, end: PayloadEnd) -> PayloadEnd:
        tries = 0
        while True:
            try:
                return await self._packers.do(partial(workdir.seal, end))
            except OSError as error:
                tries += error.errno not in NO_SPACE
                log.error("payload %d cannot be packed yet: %s", workdir.id, error)
                if tries == PACK_TRIES:
                    return workdir.write_end(cannot_be_packed(error))
            except Exception as error:
                log.exception("payload %d cannot be packed", workdir.id)
                return workdir.write_end(cannot_be_packed(error))
            await asyncio.sleep(PACK_AGAIN)


def has_ended(payload: Payload) -> bool:
    """Whether nothing more happens to a payload but the removal of its files."""
    return payload.status in PAYLOAD_ENDED or payload.status is PayloadStatus.CLEANED


def _has_windows_lines(workdir: Workdir) -> bool:
    try:
        with open(workdir.job / "run.sh", "rb") as file:
            return b"\r\n" in file.read(RUN_SH_HEAD)
    except OSError:
        return False
