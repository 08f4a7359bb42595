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

and an exclusive lock on it until nothing of run.sh's process group is left, which run.sh does not
inherit. Lock held means running: no process id needs to be believed. What has `started` is never
started again. A supervisor that is killed leaves runs whose end nobody keeps: all of them are in
its session, and the next supervisor ends them before it serves.

Messages are lines of JSON. From the client: {"do": "start" | "kill", "id": …, …}. To the client:
{"say": "hello" | "started" | "ended" | "killing" | "over", "id": …, …}.
"""

import contextlib
import ctypes
import fcntl
import functools
import json
import math
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
#: How long the client may take nothing of what it is told (seconds) before it is cut off.
SAY_PATIENCE = 5.0
#: How long what has been sent SIGKILL is waited for, and how often it is looked at (seconds).
LEAVE_PATIENCE = 5.0
LEAVE_LOOK = 0.02
PR_SET_CHILD_SUBREAPER = 36
BASH = "/bin/bash"


def read_records(descriptor: int) -> dict[str, dict[str, Any]]:
    """The records of a file `run`. One that cannot be read was written all the same."""
    found: dict[str, dict[str, Any]] = {}
    content = os.pread(descriptor, RECORD_SIZE * len(RECORDS), 0)
    for number, name in enumerate(RECORDS):
        if text := content[number * RECORD_SIZE :][:RECORD_SIZE].strip(b"\0 \n"):
            found[name] = {}
            with contextlib.suppress(ValueError):
                found[name] = json.loads(text)
    return found


def read_run(path: str, *, wait: bool = False) -> dict[str, dict[str, Any]]:
    """The records of a file `run`; with `wait` once its lock is free: once it does not run."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return {}
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return read_records(descriptor)
    finally:
        os.close(descriptor)


def write_record(descriptor: int, name: str, content: dict[str, Any]) -> None:
    """Write a record in place: one write, which never needs more room on the disk."""
    text = json.dumps(content, separators=(",", ":")).encode()
    text = text[: RECORD_SIZE - 1].ljust(RECORD_SIZE - 1) + b"\n"
    os.pwrite(descriptor, text, RECORDS.index(name) * RECORD_SIZE)


@functools.cache
def boot_id() -> str:
    """Which boot of the machine this is."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def read_stat(pid: int) -> tuple[str, int, int]:
    """State, session and start (in clock ticks since the boot) of a process; zeros for none.

    Fields 3, 6 and 22 of /proc/<pid>/stat (proc_pid_stat(5)), behind a name that may hold anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[3]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0, 0


def identify(pid: int) -> dict[str, Any]:
    """What tells a process from any other that ever had its number."""
    return {"boot": boot_id(), "pid": pid, "ticks": read_stat(pid)[2]}


def end_session(session: int, ticks: int) -> None:
    """Kill what is left of the session of a process that began then, and wait until it is gone."""
    if read_stat(session)[2] not in (0, ticks):
        # The number is another's now: it was free, so nothing of the session was left.
        return
    for _ in range(int(LEAVE_PATIENCE / LEAVE_LOOK)):
        pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
        stats = [(pid, *read_stat(pid)) for pid in pids]
        left = [pid for pid, state, its, _ in stats if its == session and state not in "ZX"]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LEAVE_LOOK)


class Run:
    """One run.sh, until nothing of its process group is left. Moments are monotonic seconds."""

    def __init__(self, id: int, descriptor: int) -> None:
        self.id = id
        self.descriptor = descriptor
        self.pid = 0
        self.began = time.monotonic()
        self.cause: str | None = None
        #: How run.sh ended, once it has.
        self.end: dict[str, Any] | None = None
        #: When it has run for too long.
        self.limit_at = math.inf
        self.grace = 0.0
        #: When SIGKILL follows SIGTERM; after the end, when the rest is waited for no longer.
        self.due_at = math.inf


class Supervisor:
    """The loop: one client, its orders, the ends of children, and what is due."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._client: socket.socket | None = None
        self._received = b""
        self._runs: dict[int, Run] = {}
        self._by_pid: dict[int, Run] = {}
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._reap)
        self._patience = time.monotonic() + FIRST_PATIENCE

    def run(self) -> None:
        """Serve until there is neither a client nor a run."""
        while self._client or self._runs or time.monotonic() < self._patience:
            for key, _ in self._selector.select(self._timeout()):
                # A new client may just have taken the place of one that also had something to say.
                if key.fd in self._selector.get_map():
                    key.data()
            self._do_due()

    def _timeout(self) -> float | None:
        """How long there is nothing to do by itself; there are few runs, so each is looked at."""
        due = min((min(run.limit_at, run.due_at) for run in self._runs.values()), default=math.inf)
        if not self._client and not self._runs:
            due = self._patience
        if any(run.end is not None for run in self._runs.values()):
            due = min(due, time.monotonic() + LEAVE_LOOK)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    # --- the client

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(SAY_PATIENCE)
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
        received = b""
        with contextlib.suppress(OSError):
            received = self._client.recv(1 << 20) if self._client else b""
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
        if id in self._runs:
            # The order of a client that died right after it came first.
            self._say("started", id, pid=self._runs[id].pid)
            return
        try:
            run = Run(id, _open_run(order["run"]))
        except OSError as error:
            self._say("ended", id, error=f"run.sh could not be started: {error.strerror}")
            return
        before = read_records(run.descriptor)
        if "started" in before:
            os.close(run.descriptor)
            cause = before.get("killed", {}).get("cause")
            self._say("ended", id, cause=cause, **(before.get("ended") or {"lost": True}))
            return
        write_record(run.descriptor, "started", identify(0))
        self._runs[id] = run
        try:
            run.pid = self._spawn(order)
        except OSError as error:
            self._end(run, None, f"run.sh could not be started: {error.strerror}")
            return
        write_record(run.descriptor, "started", identify(run.pid))
        self._by_pid[run.pid] = run
        if order["timeout"] is not None:
            run.limit_at = run.began + order["timeout"]
            run.grace = order["grace"]
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
                setsigdef=_ALL_SIGNALS,
            )
        finally:
            os.fchdir(self._home)

    def _kill(self, id: int, cause: str, grace: float) -> None:
        """End a run: what it ends with from now on is not its own wish."""
        run = self._runs.get(id)
        if run is None or run.end is not None or run.cause not in (None, cause):
            # How it ends is decided already.
            self._say("over", id)
            return
        if run.cause is None:
            run.cause = cause
            write_record(run.descriptor, "killed", {"cause": cause})
            os.fsync(run.descriptor)
            _signal_group(run.pid, signal.SIGTERM)
            run.limit_at = math.inf
            run.due_at = time.monotonic() + grace
        self._say("killing", id)

    def _do_due(self) -> None:
        now = time.monotonic()
        for run in list(self._runs.values()):
            if run.end is not None:
                if now >= run.due_at or not _signal_group(run.pid, 0):
                    self._let_go(run)
            elif now >= run.due_at:
                run.due_at = math.inf
                _signal_group(run.pid, signal.SIGKILL)
            elif now >= run.limit_at:
                self._kill(run.id, "limit", run.grace)

    def _reap(self) -> None:
        os.read(self._wake, 4096)
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
                cpu_s = round(usage.ru_utime + usage.ru_stime, 6)
                self._end(run, status, None, cpu_s=cpu_s, max_rss=usage.ru_maxrss * 1024)

    def _end(self, run: Run, status: int | None, error: str | None, **usage: float) -> None:
        """Keep how run.sh ended; it is told once nothing is left that may write to its files."""
        run.end = {"exit_code": None, "signal": None, "error": error, **usage}
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            run.end["exit_code"] = code if code >= 0 else 128 - code
            run.end["signal"] = -code if code < 0 else None
            run.end["wall_s"] = round(time.monotonic() - run.began, 6)
        write_record(run.descriptor, "ended", run.end)
        run.due_at = time.monotonic() + LEAVE_PATIENCE
        if not run.pid or not _signal_group(run.pid, 0):
            self._let_go(run)

    def _let_go(self, run: Run) -> None:
        del self._runs[run.id]
        self._say("ended", run.id, cause=run.cause, **(run.end or {}))
        os.fsync(run.descriptor)
        os.close(run.descriptor)


_ALL_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _open_run(path: str) -> int:
    """Open a file `run`, with its lock and with room for what will be written to it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_size == 0:
            os.posix_fallocate(descriptor, 0, RECORD_SIZE * len(RECORDS))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; False if nothing of it is left."""
    with contextlib.suppress(PermissionError):  # It is there, as somebody else by now.
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return False
    return True


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
    former = read_records(lock).get("started", {})
    if former.get("boot") == boot_id():
        end_session(former["pid"], former["ticks"])
    with contextlib.suppress(OSError):  # The disk may be full.
        write_record(lock, "started", identify(os.getpid()))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET_NAME)  # noqa: PTH108 - pathlib is slow to import
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(SOCKET_NAME)
    listener.listen(4)
    supervisor = Supervisor(listener)
    os.close(ready)
    supervisor.run()
    os.unlink(SOCKET_NAME)  # noqa: PTH108
    os.ftruncate(lock, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
