"""Payloads run on this machine, by bash, under a supervisor that outlives the client."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orchestrator_client import supervisor
from orchestrator_client.executors.base import Listener, RunEnd
from orchestrator_client.workdir import Workdir
from orchestrator_shared.errors import Unavailable

log = logging.getLogger(__name__)

#: The longest line of the supervisor (bytes).
LINE_LIMIT: Final = 1 << 20
#: How often a supervisor that goes away while we connect is started again.
CONNECT_TRIES: Final = 5
#: The file descriptor over which a new supervisor says that it can be connected to.
READY_FD: Final = 3


class BashExecutor:
    """Talks to the supervisor of this DATA_PATH, and starts it where there is none."""

    def __init__(self, data_path: Path, kill_grace: float) -> None:
        self._data_path = data_path
        self._kill_grace = kill_grace
        self._listener: Listener | None = None
        self._workdirs: dict[int, Workdir] = {}
        self._kills: dict[int, asyncio.Future[bool]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._children: set[int] = set()
        self._closing = False

    async def open(self, listener: Listener, running: Mapping[int, Workdir]) -> None:
        """See Executor."""
        self._listener = listener
        self._workdirs.update(running)
        if running:
            await self._connect()

    async def start(
        self, workdir: Workdir, environment: Mapping[str, str], limit_s: float | None
    ) -> None:
        """See Executor."""
        # First: what is known here when a supervisor is met, and runs under none, is lost.
        await self._connect()
        self._workdirs[workdir.id] = workdir
        await self._order(
            {
                "do": "start",
                "id": workdir.id,
                "work": str(workdir.job),
                "run": str(workdir.run),
                "stdout": str(workdir.stdout),
                "stderr": str(workdir.stderr),
                "env": dict(environment),
                "timeout": limit_s,
                "grace": self._kill_grace,
            }
        )

    async def kill(self, id: int, cause: str) -> bool:
        """See Executor."""
        if id not in self._workdirs:
            return False
        answer = self._kills.get(id)
        if answer is None:
            answer = self._kills[id] = asyncio.get_running_loop().create_future()
            await self._order({"do": "kill", "id": id, "cause": cause, "grace": self._kill_grace})
        return await asyncio.shield(answer)

    async def close(self) -> None:
        """See Executor."""
        self._closing = True
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._writer is not None:
            self._writer.close()
        self._collect()

    # --- the supervisor

    async def _order(self, order: dict[str, Any]) -> None:
        writer = await self._connect()
        writer.write(json.dumps(order).encode() + b"\n")
        await writer.drain()

    async def _connect(self) -> asyncio.StreamWriter:
        """The connection to the supervisor, which is started where there is none."""
        async with self._connecting:
            for _ in range(CONNECT_TRIES):
                if self._writer is not None:
                    return self._writer
                with contextlib.suppress(OSError):
                    await self._connect_once()
                if self._writer is None:
                    await asyncio.to_thread(self._start_supervisor)
            raise Unavailable(problem="the supervisor cannot be started; see supervisor.log")

    async def _connect_once(self) -> None:
        # A socket's path has 107 bytes at most, whatever DATA_PATH has: take the short way.
        folder = os.open(self._data_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            reader, writer = await asyncio.open_unix_connection(
                f"/proc/self/fd/{folder}/{supervisor.SOCKET_NAME}", limit=LINE_LIMIT
            )
        finally:
            os.close(folder)
        line = await reader.readline()
        if not line:
            # It was just about to end.
            writer.close()
            return
        hello = json.loads(line)
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader), name="supervisor")
        gone = [id for id in self._workdirs if id not in hello["running"]]
        for id in gone:
            self._look_at(id)

    def _start_supervisor(self) -> None:
        """Blocks until the new supervisor can be connected to, or has failed."""
        readable, writable = os.pipe()
        with open(self._data_path / "supervisor.log", "ab") as errors:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", supervisor.__file__, str(self._data_path), "3"],
                {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
                    (os.POSIX_SPAWN_DUP2, writable, READY_FD),
                ],
                setsid=True,
                setsigmask=[],
            )
        os.close(writable)
        self._children.add(pid)
        with open(readable, "rb") as ready:
            ready.read()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self._hear(json.loads(line))
        self._writer = None
        self._collect()
        log.error("the supervisor is gone: what ran under it is lost")
        for answer in self._kills.values():
            answer.cancel()
        self._kills.clear()
        for id in list(self._workdirs):
            self._look_at(id)

    def _hear(self, message: dict[str, Any]) -> None:
        assert self._listener is not None  # noqa: S101 - open() set it
        what, id = message.pop("say"), message.pop("id")
        if what == "started":
            self._listener.on_started(id, message["pid"])
        elif what == "ended":
            self._ended(id, RunEnd(**message))
        elif (answer := self._kills.pop(id, None)) is not None and not answer.done():
            answer.set_result(what == "killing")

    def _ended(self, id: int, end: RunEnd) -> None:
        assert self._listener is not None  # noqa: S101 - open() set it
        if self._workdirs.pop(id, None) is not None:
            self._listener.on_ended(id, end)

    def _look_at(self, id: int) -> None:
        """A payload that no supervisor has: its file says how it ended, or that it is lost."""
        records, held = supervisor.read_run(str(self._workdirs[id].run))
        if held:
            return
        cause = records.get("killed", {}).get("cause")
        started = records.get("started", {})
        if started.get("boot") != supervisor.boot_id():
            # What a job wrote before a power cut may be cut short, whatever its exit status.
            self._ended(id, RunEnd(lost=True, cause=cause))
        elif "ended" in records:
            self._ended(id, RunEnd(cause=cause, **records["ended"]))
        else:
            if started.get("pid") and supervisor.start_ticks(started["pid"]) == started["ticks"]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(started["pid"], 9)
            self._ended(id, RunEnd(lost=True, cause=cause))

    def _collect(self) -> None:
        """Collect supervisors that have ended: no zombie stays behind."""
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._children.discard(pid)
