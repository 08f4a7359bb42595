"""What outlives the client: starts run.sh, and keeps the exit status of each.

One supervisor serves all payloads of a client. It is a small process of its own that imports
nothing but the standard library, so that it costs little and an upgrade of the client does not
touch it. It listens on a Unix socket in DATA_PATH for one client at a time, and ends when no
client is connected and nothing runs.

For each payload it keeps the file `run`, allocated beforehand so that a full disk cannot lose an
exit status, with three records of fixed length:

    started   {"boot", "pid", "ticks"}    before run.sh begins, then with its process
    killed    {"cause"}                   before the first signal that somebody asked for
    ended     {"exit_code", "wall_s", "cpu_s", "max_rss", "error"}

and an exclusive lock on it for as long as run.sh runs, which run.sh does not inherit. Lock held
means running: no process id needs to be believed. What has `started` is never started again.

Messages are lines of JSON. From the client: {"do": "start" | "kill", "id": …, …}. To the client:
{"say": "hello" | "started" | "ended" | "killing" | "over", "id": …, …}.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

VERSION = 1
SOCKET_NAME = "supervisor.sock"
LOCK_NAME = "supervisor.lock"
RECORD_SIZE = 256
RECORDS = ("started", "killed", "ended")
#: How long a fresh supervisor waits for its client (seconds).
FIRST_PATIENCE = 30.0
PR_SET_CHILD_SUBREAPER = 36

BASH = "/bin/bash"


def read_run(path: str) -> tuple[dict[str, Any], bool]:
    """The records of a file `run`, and whether its lock is held: whether run.sh runs."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return {}, False
    try:
        held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        found = {}
        for number, name in enumerate(RECORDS):
            text = os.pread(descriptor, RECORD_SIZE, number * RECORD_SIZE).strip(b"\0 \n")
            if text:
                found[name] = json.loads(text)
        return found, held
    finally:
        os.close(descriptor)


def write_record(descriptor: int, name: str, content: dict[str, Any]) -> None:
    """Write a record in place: one write, which never needs more room on the disk."""
    text = json.dumps(content, separators=(",", ":")).encode()
    text = text[: RECORD_SIZE - 1].ljust(RECORD_SIZE - 1) + b"\n"
    os.pwrite(descriptor, text, RECORDS.index(name) * RECORD_SIZE)


def boot_id() -> str:
    """Which boot of the machine this is."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since the boot; 0 if there is none.

    Field 22 of /proc/<pid>/stat, proc_pid_stat(5): the name before it may hold anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


class Run:
    """One run.sh that runs."""

    def __init__(self, id: int, descriptor: int) -> None:
        self.id = id
        self.descriptor = descriptor
        self.pid = 0
        self.began = time.monotonic()
        self.cause: str | None = None


class Supervisor:
    """The loop: one client, its orders, the ends of children, and what is due."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._client: socket.socket | None = None
        self._received = b""
        self._runs: dict[int, Run] = {}
        self._by_pid: dict[int, Run] = {}
        self._due: list[tuple[float, int, str, float]] = []
        self._boot = boot_id()
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self._wake, wake_write = os.pipe()
        for end in (self._wake, wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._reap)
        self._patience = time.monotonic() + FIRST_PATIENCE

    def run(self) -> None:
        """Serve until there is neither a client nor a run."""
        while self._client or self._runs or time.monotonic() < self._patience:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._do_due()

    def _timeout(self) -> float | None:
        moments = [self._due[0][0]] if self._due else []
        if not self._client and not self._runs:
            moments.append(self._patience)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    # --- the client

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._drop_client()
        self._client = connection
        self._selector.register(connection, selectors.EVENT_READ, self._hear)
        self._say("hello", 0, version=VERSION, running=list(self._runs))

    def _drop_client(self) -> None:
        if self._client is not None:
            self._selector.unregister(self._client)
            self._client.close()
        self._client = None
        self._received = b""
        self._patience = 0.0

    def _hear(self) -> None:
        assert self._client is not None  # noqa: S101 - it was registered with the selector
        try:
            received = self._client.recv(1 << 20)
        except OSError:
            received = b""
        if not received:
            self._drop_client()
            return
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order["do"] == "start":
                self._start(order)
            else:
                self._kill(order["id"], order["cause"], order["grace"])

    def _say(self, what: str, id: int, **more: Any) -> None:
        """Tell the client; if it is away, it finds everything on the disk when it is back."""
        if self._client is None:
            return
        try:
            self._client.sendall(json.dumps({"say": what, "id": id, **more}).encode() + b"\n")
        except OSError:
            self._drop_client()

    # --- the runs

    def _start(self, order: dict[str, Any]) -> None:
        id = order["id"]
        try:
            descriptor = os.open(order["run"], os.O_RDWR | os.O_CREAT, 0o600)
            run = Run(id, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size == 0:
                os.posix_fallocate(descriptor, 0, RECORD_SIZE * len(RECORDS))
            started = {"boot": self._boot, "pid": 0, "ticks": 0}
            write_record(descriptor, "started", started)
        except OSError as error:
            # Nothing has started, and the disk may have no room to say so.
            self._say("ended", id, error=f"run.sh could not be started: {error.strerror}")
            return
        try:
            run.pid = self._spawn(order)
        except OSError as error:
            self._end(run, None, f"run.sh could not be started: {error.strerror}")
            return
        started.update(pid=run.pid, ticks=start_ticks(run.pid))
        write_record(descriptor, "started", started)
        self._runs[id] = self._by_pid[run.pid] = run
        if order["timeout"] is not None:
            due = run.began + order["timeout"]
            heapq.heappush(self._due, (due, id, "limit", order["grace"]))
        self._say("started", id, pid=run.pid)

    def _spawn(self, order: dict[str, Any]) -> int:
        """bash run.sh, in a process group of its own. posix_spawn costs a third of fork."""
        os.chdir(order["work"])
        try:
            return os.posix_spawn(
                BASH,
                ["bash", "run.sh"],
                order["env"],
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, order["stdout"], _APPEND, 0o600),
                    (os.POSIX_SPAWN_OPEN, 2, order["stderr"], _APPEND, 0o600),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM],
            )
        finally:
            os.fchdir(self._home)

    def _kill(self, id: int, cause: str, grace: float) -> None:
        """End a run: what it ends with from now on is not its own wish."""
        run = self._runs.get(id)
        if run is None:
            self._say("over", id)
            return
        if run.cause is None:
            run.cause = cause
            write_record(run.descriptor, "killed", {"cause": cause})
            os.fsync(run.descriptor)
            _signal_group(run.pid, signal.SIGTERM)
            heapq.heappush(self._due, (time.monotonic() + grace, id, "kill", 0.0))
        self._say("killing", id)

    def _do_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, id, what, grace = heapq.heappop(self._due)
            run = self._runs.get(id)
            if run is None:
                continue
            if what == "limit":
                self._kill(id, "limit", grace)
            else:
                _signal_group(run.pid, signal.SIGKILL)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 4096):
                pass
        while True:
            try:
                # Seen, but not yet collected: until then the number of its group is its own.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            run = self._by_pid.pop(found.si_pid, None)
            if run is not None:
                _signal_group(run.pid, signal.SIGKILL)
            _, status, usage = os.wait4(found.si_pid, 0)
            if run is not None:
                del self._runs[run.id]
                self._end(
                    run,
                    status,
                    None,
                    cpu_s=round(usage.ru_utime + usage.ru_stime, 6),
                    max_rss=usage.ru_maxrss * 1024,
                )

    def _end(self, run: Run, status: int | None, error: str | None, **usage: float) -> None:
        end: dict[str, Any] = {"exit_code": None, "signal": None, "error": error, **usage}
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            end["exit_code"] = code if code >= 0 else 128 - code
            end["signal"] = -code if code < 0 else None
            end["wall_s"] = round(time.monotonic() - run.began, 6)
        write_record(run.descriptor, "ended", end)
        self._say("ended", run.id, cause=run.cause, **end)
        os.fsync(run.descriptor)
        os.close(run.descriptor)


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def main(data_path: str, ready: int) -> None:
    """Serve the client of this DATA_PATH; `ready` is closed once it can connect."""
    os.chdir(data_path)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # What a job leaves behind is collected here, whoever is process 1.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lock = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET_NAME)  # noqa: PTH108 - pathlib is slow to import
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(SOCKET_NAME)
    listener.listen(4)
    supervisor = Supervisor(listener)
    os.close(ready)
    supervisor.run()
    os.unlink(SOCKET_NAME)  # noqa: PTH108


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
