"""Payloads run on this machine, by bash, under a supervisor that outlives the client."""

import asyncio
import contextlib
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orchestrator_client import supervisor
from orchestrator_client.executors.base import Limit, Listener, RunEnd
from orchestrator_client.processes import boot_id
from orchestrator_client.run_file import read_run
from orchestrator_client.workdir import Workdir
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import Unavailable
from orchestrator_shared.folders import short_path

log = logging.getLogger(__name__)

#: The longest line of the supervisor (bytes).
LINE_LIMIT: Final = 1 << 20
#: How often a supervisor that goes away while we connect is started again.
CONNECT_TRIES: Final = 5
#: How long one may take (seconds) until it can be connected to.
START_PATIENCE: Final = 20.0
#: How long to wait (seconds) before another is tried in the place of one that went away.
RECOVER_AGAIN: Final = 1.0
#: The file descriptor over which a new supervisor says that it can be connected to.
READY_FD: Final = 3
#: A supervisor as a process: without what is installed beside us, but for where we are ourselves.
SUPERVISE: Final = (
    "import sys; sys.path.append(sys.argv[1]); from orchestrator_client.supervisor import main; "
    "main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
)


class BashExecutor:
    """Talks to the supervisor of this DATA_PATH, and starts it where there is none."""

    def __init__(self, data_path: Path, kill_grace: float, open_files: int) -> None:
        """Kill what runs too long with this grace (seconds); jobs may open so many files."""
        self._data_path = data_path
        self._kill_grace = kill_grace
        self._open_files = open_files
        self._listener: Listener | None = None
        #: What runs, as far as is known here.
        self._workdirs: dict[int, Workdir] = {}
        #: What has ended but for processes that are still there.
        self._stuck: frozenset[int] = frozenset()
        self._kills: dict[int, asyncio.Future[bool]] = {}
        self._writer: asyncio.StreamWriter | None = None
        #: Orders go out one after the other: no kill overtakes the start it is about.
        self._ordering = asyncio.Lock()
        self._errands = Errands("the supervisor")

    async def open(self, listener: Listener, running: Mapping[int, Workdir]) -> None:
        """See Executor."""
        self._listener = listener
        self._workdirs.update(running)
        async with self._ordering:
            if running:
                await self._connect()
            else:
                # One that is there without a client has something that is stuck.
                with contextlib.suppress(OSError):
                    await self._connect_once()

    async def start(
        self, workdir: Workdir, environment: Mapping[str, str], limit: Limit | None
    ) -> None:
        """See Executor."""
        async with self._ordering:
            # First: what is known here when a supervisor is met, and runs under none, is lost.
            writer = await self._connect()
            self._workdirs[workdir.id] = workdir
            await _order(
                writer,
                {
                    "do": "start",
                    "id": workdir.id,
                    "work": workdir.job,
                    "run": workdir.run,
                    "stdout": workdir.stdout,
                    "stderr": workdir.stderr,
                    "env": dict(environment),
                    "timeout": limit.seconds if limit else None,
                    "limit": str(limit) if limit else "",
                    "grace": self._kill_grace,
                },
            )

    async def kill(self, id: int, cause: str, grace: float) -> bool:
        """See Executor."""
        async with self._ordering:
            if id in self._workdirs and id not in self._kills:
                writer = await self._connect()
                self._kills[id] = asyncio.get_running_loop().create_future()
                order = {"do": "kill", "id": id, "cause": cause, "grace": grace}
                await _order(writer, order)
            answer = self._kills.get(id)
        return answer is not None and await asyncio.shield(answer)

    async def close(self) -> None:
        """See Executor."""
        await self._errands.close(0)
        if self._writer is not None:
            self._writer.close()

    # --- the supervisor

    async def _connect(self) -> asyncio.StreamWriter:
        """The connection to the supervisor, which is started where there is none."""
        for _ in range(CONNECT_TRIES):
            if self._writer is not None:
                return self._writer
            with contextlib.suppress(OSError):
                await self._connect_once()
            if self._writer is None:
                await asyncio.to_thread(self._start_supervisor)
        raise Unavailable(problem="the supervisor cannot be started; see supervisor.log")

    async def _connect_once(self) -> None:
        with short_path(self._data_path / supervisor.SOCKET_NAME) as short:
            reader, writer = await asyncio.open_unix_connection(short, limit=LINE_LIMIT)
        try:
            hello = json.loads(await reader.readline())
        except (ValueError, ConnectionError):
            # It was just about to end.
            writer.close()
            return
        self._writer = writer
        self._set_stuck(frozenset(hello.get("stuck", ())))
        gone = [id for id in self._workdirs if id not in hello["running"]]
        self._errands.run(self._read(reader, writer))
        for id in gone:
            await self._look_at(id)

    def _start_supervisor(self) -> None:
        """Blocks until the new supervisor can be connected to, or has failed."""
        readable, writable = os.pipe()
        with open(readable, "rb") as ready:
            with (
                open(writable, "wb") as held,
                open(self._data_path / "supervisor.log", "ab") as errors,
            ):
                pid = os.posix_spawn(
                    sys.executable,
                    [
                        *(sys.executable, "-I", "-S", "-c", SUPERVISE),
                        str(Path(supervisor.__file__).parents[1]),
                        str(self._data_path),
                        str(self._open_files),
                        str(READY_FD),
                    ],
                    {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                        (os.POSIX_SPAWN_DUP2, 0, 1),
                        (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
                        (os.POSIX_SPAWN_DUP2, held.fileno(), READY_FD),
                        *((os.POSIX_SPAWN_CLOSE, stray) for stray in _strays()),
                    ],
                    setsid=True,
                    setsigmask=[],
                )
            # Whenever it ends, it is collected: no zombie stays behind.
            threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            poll.poll(START_PATIENCE * 1000)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while (line := await reader.readline()).endswith(b"\n"):
                try:
                    self._hear(json.loads(line))
                except Exception:
                    log.exception("a message of the supervisor could not be taken: %r", line)
        writer.close()
        self._writer = None
        self._errands.run(self._recover())

    async def _recover(self) -> None:
        """The supervisor has gone away: what still runs, or how it ended, is found out."""
        log.error("the supervisor is gone; what ran under it is lost unless it is still there")
        gone = Unavailable(problem="the supervisor went away")
        for answer in self._kills.values():
            answer.set_exception(gone)
        self._kills.clear()
        # The next one ends what is left in the session of this one.
        self._set_stuck(frozenset())
        while self._workdirs:
            try:
                async with self._ordering:
                    await self._connect()
                return
            except (OSError, Unavailable) as error:
                log.error("what runs is not known: %s", error)
                await asyncio.sleep(RECOVER_AGAIN)

    def _hear(self, message: dict[str, Any]) -> None:
        assert self._listener is not None  # noqa: S101 - open() set it
        what, id = message.pop("say"), message.pop("id")
        if what == "started":
            self._listener.on_started(id, message["pid"])
        elif what == "ended":
            end = RunEnd(**message)
            if end.stuck:
                self._set_stuck(self._stuck | {id})
            self._ended(id, end)
        elif what == "gone":
            self._set_stuck(self._stuck - {id})
        elif (answer := self._kills.pop(id, None)) is not None:
            answer.set_result(what == "killing")

    def _ended(self, id: int, end: RunEnd) -> None:
        assert self._listener is not None  # noqa: S101 - open() set it
        if self._workdirs.pop(id, None) is not None:
            self._listener.on_ended(id, end)

    def _set_stuck(self, ids: frozenset[int]) -> None:
        assert self._listener is not None  # noqa: S101 - open() set it
        if ids != self._stuck:
            self._stuck = ids
            self._listener.on_stuck(ids)

    async def _look_at(self, id: int) -> None:
        """A payload that no supervisor has: its file says how it ended, or that it is lost."""
        path = self._workdirs[id].run
        # A supervisor that was killed may hold its locks for a moment longer.
        records = await asyncio.to_thread(read_run, path, wait=True)
        killed = records.get("killed", {})
        # What a job wrote before a power cut may be cut short, whatever its exit status.
        same_boot = records.get("started", {}).get("boot") == boot_id()
        end = records.get("ended") if same_boot else None
        self._ended(id, RunEnd(**killed, **(end or {"lost": True})))


def _strays() -> list[int]:
    """What whoever started the client has left open to it: no job is to have it."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if int(name) > READY_FD and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


async def _order(writer: asyncio.StreamWriter, order: dict[str, Any]) -> None:
    writer.write(json.dumps(order).encode() + b"\n")
    # Where the supervisor has just gone away, whoever reads from it notices.
    with contextlib.suppress(ConnectionError):
        await writer.drain()
