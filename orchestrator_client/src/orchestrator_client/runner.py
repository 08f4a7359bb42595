"""4, run: Prepared → Running → ended, SLOTS at a time, oldest first."""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec.structs import replace

from orchestrator_client.config import Config
from orchestrator_client.executors.base import Executor, Limit, RunEnd
from orchestrator_client.packers import Packers
from orchestrator_client.payloads import Payload, PayloadEnd, Payloads
from orchestrator_client.standing import Standing
from orchestrator_client.verdict import (
    KILLED_BEFORE_START,
    NO_RUN_SH,
    cannot_be_packed,
    handed_back,
    judge,
)
from orchestrator_client.workdir import Workdir
from orchestrator_shared.answers import NO_SPACE
from orchestrator_shared.clocks import Clock
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import Transient
from orchestrator_shared.status import PayloadStatus
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

#: How long to wait (seconds) before packing is tried again on a disk that is full.
PACK_AGAIN: Final = 5.0
#: How often packing is tried where the disk has room and something else is wrong.
PACK_TRIES: Final = 12
#: How long starts and packing under way may go on when the client stops (seconds).
CLOSE_PATIENCE: Final = 0.3
#: How much of run.sh is looked at (bytes) to tell its line ends.
RUN_SH_HEAD: Final = 4096


class Runner:
    """Starts what is Prepared while slots are free; packs what has ended."""

    def __init__(
        self,
        config: Config,
        payloads: Payloads,
        executor: Executor,
        standing: Standing,
        clock: Clock,
    ) -> None:
        self.task = BackgroundTask("runner", self.run_once, config.runner_interval)
        #: Payloads that have ended, and of which processes still take a slot.
        self.stuck: frozenset[int] = frozenset()
        #: Called when what is stuck changes.
        self.stuck_listener: Callable[[], None] = lambda: None
        self._config = config
        self._payloads = payloads
        self._executor = executor
        self._standing = standing
        self._clock = clock
        #: Payloads whose run.sh takes a slot.
        self._running: set[int] = set()
        #: Payloads that are being sealed: no other end can come to them.
        self._sealing: set[int] = set()
        self._packers = Packers()
        self._starts = Errands("a payload could not be started")
        self._errands = Errands("a payload could not be brought to its end")
        self._ends: dict[int, asyncio.Event] = {}

    @property
    def slots_in_use(self) -> int:
        """How many are taken by what runs, and by what SIGKILL does not end."""
        return len(self._running | self.stuck)

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
        await self._starts.close(CLOSE_PATIENCE)
        await self._executor.close()
        await self._errands.close(CLOSE_PATIENCE)
        self._packers.close()

    async def run_once(self) -> int:
        """Start what can be started; gives back how many that were."""
        started = 0
        while (payload := self._next()) is not None:
            await self._start(payload)
            started += 1
        return started

    def fill(self) -> None:
        """Start what can be started, beside everything else; without the turn of a loop that is
        woken for it, which takes longer than a start."""
        if self._next() is not None:
            self._starts.run(self.run_once())

    def _next(self) -> Payload | None:
        """The payload whose turn it is; None if there is no slot for it."""
        if self._standing.state != "up" or self.slots_in_use >= self._config.slots:
            return None
        return self._payloads.oldest_prepared()

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
        elif await self._kill_running(id, "operator", self._config.kill_grace):
            self._payloads.set_killed(id)
        payload = self._payloads.get(id)
        under_way = payload.killed and not payload.has_ended
        return under_way or payload.status is PayloadStatus.KILLED

    async def hand_back(self, id: int, why: str, grace: float = 0.0) -> None:
        """End a payload because it is to run elsewhere, or later; nothing is packed of it.

        Where it runs it gets so many seconds between SIGTERM and SIGKILL. One that has, or will
        have, another end keeps that.

        Raises:
            Transient: nobody knows; it can be asked again.
        """
        payload = self._payloads.get(id)
        if payload.status is PayloadStatus.PREPARED and not payload.killed:
            # Before anything is awaited: it does not start any more.
            self._payloads.set_killed(id)
            await self._end_unpacked(id, handed_back(why))
        else:
            await self._kill_running(id, "hand_back", grace)

    async def ended(self, id: int) -> None:
        """Wait until a payload has ended."""
        if not self._payloads.get(id).has_ended:
            await self._ends.setdefault(id, asyncio.Event()).wait()

    # --- what the executor tells

    def on_started(self, id: int, pid: int) -> None:
        """run.sh runs."""
        self._payloads.set_pid(id, pid)

    def on_ended(self, id: int, end: RunEnd) -> None:
        """run.sh has ended: its slot is free, and what it left is packed."""
        self._running.discard(id)
        self.fill()
        self._errands.run(self._judge(id, end))

    def on_stuck(self, ids: frozenset[int]) -> None:
        """Of these payloads processes are still there after SIGKILL."""
        for id in ids - self.stuck:
            log.error("payload %d: its processes outlive SIGKILL, and take a slot", id)
        self.stuck = ids
        self.stuck_listener()
        self.task.wake()

    # ---

    async def _kill_running(self, id: int, cause: str, grace: float) -> bool:
        return id in self._running and await self._executor.kill(id, cause, grace)

    async def _start(self, payload: Payload) -> None:
        workdir = self.workdir(payload.id)
        if not workdir.has_run_sh:
            end = self._stamp(NO_RUN_SH)
            self._set_ended(payload.id, end)
            try:
                workdir.write_end(end)
            except OSError as error:
                log.error("payload %d will be found Invalid again: %s", payload.id, error)
            return
        self._payloads.set_running(payload.id)
        self._running.add(payload.id)
        try:
            await self._executor.start(
                workdir, self._environment(payload, workdir), self._limit(payload)
            )
        except (OSError, Transient) as error:
            no_room = isinstance(error, OSError) and error.errno in NO_SPACE
            reason = f"run.sh could not be started: {error}"
            self.on_ended(payload.id, RunEnd(error=reason, no_room=no_room))

    def _limit(self, payload: Payload) -> Limit | None:
        limits = [
            Limit(seconds, whose)
            for seconds, whose in (
                (payload.limit_s, "MAX_RUNTIME of its service"),
                (self._config.job_timeout, "JOB_TIMEOUT"),
            )
            if seconds is not None
        ]
        return min(limits, key=lambda limit: limit.seconds, default=None)

    def _environment(self, payload: Payload, workdir: Workdir) -> dict[str, str]:
        """All that run.sh gets: nothing else of the client's environment."""
        given = {name: os.environ[name] for name in self._config.job_env if name in os.environ}
        return {
            **given,
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": workdir.home,
            "TMPDIR": workdir.tmp,
            "ORCH_JOB_ID": str(payload.job if payload.job is not None else payload.id),
            "ORCH_ATTEMPT": str(payload.attempt or 1),
            "ORCH_SERVICE": payload.service,
            "ORCH_CPUS": str(self._config.cpus_per_slot),
        }

    async def _judge(self, id: int, end: RunEnd) -> None:
        windows = False
        if end.exit_code:
            windows = await asyncio.to_thread(_has_windows_lines, self.workdir(id))
        verdict = judge(end, windows_lines=windows)
        if verdict.handed_back:
            await self._end_unpacked(id, verdict)
        else:
            await self._seal(id, verdict)

    async def _seal(self, id: int, end: PayloadEnd) -> None:
        """Pack what a payload leaves; only then has it ended."""
        if id in self._sealing or self._payloads.get(id).has_ended:
            return
        workdir = self.workdir(id)
        end = self._stamp(end)
        if (sealed := self._seal_small(workdir, end)) is not None:
            # Its few files stay where they are until its server acknowledges it.
            self._set_ended(id, sealed)
            return
        self._sealing.add(id)
        try:
            self._set_ended(id, await self._pack(workdir, end))
        finally:
            self._sealing.discard(id)
        await self._packers.do(workdir.remove_work)

    @staticmethod
    def _seal_small(workdir: Workdir, end: PayloadEnd) -> PayloadEnd | None:
        try:
            return workdir.seal_small(end)
        except OSError:
            return None
        except Exception:
            log.exception("payload %d is packed the other way", workdir.id)
            return None

    async def _end_unpacked(self, id: int, end: PayloadEnd) -> None:
        """The end of a payload of which nobody wants the files."""
        end = self._stamp(end)
        try:
            await asyncio.to_thread(self.workdir(id).write_end, end)
        except OSError as error:
            log.error("payload %d is handed back, if its server hears it now: %s", id, error)
        self._set_ended(id, end)

    def _set_ended(self, id: int, end: PayloadEnd) -> None:
        self._payloads.set_ended(id, end)
        if waited_for := self._ends.pop(id, None):
            waited_for.set()

    def _stamp(self, end: PayloadEnd) -> PayloadEnd:
        return replace(end, ended_at=self._clock.now())

    async def _pack(self, workdir: Workdir, end: PayloadEnd) -> PayloadEnd:
        tries = 0
        while True:
            try:
                return await self._packers.do(partial(workdir.seal, end))
            except OSError as error:
                tries += error.errno not in NO_SPACE
                log.error("payload %d cannot be packed yet: %s", workdir.id, error)
                if tries == PACK_TRIES:
                    return workdir.write_end(self._stamp(cannot_be_packed(error)))
            except Exception as error:
                log.exception("payload %d cannot be packed", workdir.id)
                return workdir.write_end(self._stamp(cannot_be_packed(error)))
            await asyncio.sleep(PACK_AGAIN)


def _has_windows_lines(workdir: Workdir) -> bool:
    try:
        with open(f"{workdir.job}/run.sh", "rb") as file:
            return b"\r\n" in file.read(RUN_SH_HEAD)
    except OSError:
        return False
