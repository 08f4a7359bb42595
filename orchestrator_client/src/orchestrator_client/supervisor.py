"""What outlives the client: starts run.sh, and keeps the exit status of each.

One supervisor serves all payloads of a client. It is a small process of its own that imports
nothing but the standard library and its three neighbours, so that it costs little and an upgrade of
the client does not touch it. It listens on a Unix socket in DATA_PATH for one client at a time, and
ends when no client is connected and nothing runs.

For each payload it keeps the file `run` (run_file.py), and an exclusive lock on it until nothing of
run.sh's process group is left, which run.sh does not inherit. Lock held means running: no process
id needs to be believed. What has `started` is never started again. What outlives its SIGKILL by
STUCK_AFTER has ended all the same, and is watched as stuck until it is gone. A supervisor that is
killed leaves runs whose end nobody keeps: all of them are in its session, and the next supervisor
ends them before it serves.

Messages are lines of JSON. From the client: {"do": "start" | "kill", "id": …, …}. To the client:
{"say": "hello" | "started" | "ended" | "killing" | "over" | "gone", "id": …, …}.
"""

import collections
import contextlib
import ctypes
import errno
import fcntl
import json
import math
import os
import resource
import selectors
import signal
import socket
import time
from typing import Any

from orchestrator_client.processes import (
    boot_id,
    end_session,
    identify,
    oom_counter,
    read_oom_kills,
    signal_group,
)
from orchestrator_client.run_file import open_run, read_records, write_record
from orchestrator_client.supervised import Run, complain

VERSION = 1
SOCKET_NAME = "supervisor.sock"
LOCK_NAME = "supervisor.lock"
#: How long a fresh supervisor waits for its client (seconds).
FIRST_PATIENCE = 30.0
#: How long the client may take nothing of what it is told (seconds) before it is cut off.
SAY_PATIENCE = 5.0
#: How long it is waited for (seconds); then it is stuck.
STUCK_AFTER = 60.0
#: The exit status of SIGKILL, which a shell passes on from what it has called (128 + 9).
KILLED = 137
#: How long the end of a run may wait for its fsync (seconds): most are acknowledged, and gone,
#: before that.
SYNC_AFTER = 3.0
#: What the system says where a disk, a quota or a limit on a file's size is used up.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PR_SET_CHILD_SUBREAPER = 36
BASH = "/bin/bash"


class Supervisor:
    """The loop: one client, its orders, the ends of children, and what is due."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._client: socket.socket | None = None
        self._received = b""
        self._runs: dict[int, Run] = {}
        self._by_pid: dict[int, Run] = {}
        #: What has ended but for processes that SIGKILL does not end.
        self._stuck: dict[int, Run] = {}
        #: Runs that have ended and have not been fsynced yet: descriptor, and since when.
        self._unsynced: collections.deque[tuple[int, float]] = collections.deque()
        #: How many files may be kept open for runs: half of what may be open in all.
        self._open_most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._oom_counter = oom_counter()
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._reap)
        self._patience = time.monotonic() + FIRST_PATIENCE

    def run(self) -> None:
        """Serve until there is neither a client nor a run."""
        while self._client or self._holds_any() or time.monotonic() < self._patience:
            for key, _ in self._selector.select(self._timeout()):
                # A new client may just have taken the place of one that also had something to say.
                if key.fd in self._selector.get_map():
                    key.data()
            self._do_due()
        self._sync(math.inf)

    def _holds_any(self) -> bool:
        return bool(self._runs or self._stuck)

    def _timeout(self) -> float | None:
        """How long there is nothing to do by itself; there are few runs, so each is looked at."""
        runs = (*self._runs.values(), *self._stuck.values())
        due = min((min(run.limit_at, run.due_at, run.look_at) for run in runs), default=math.inf)
        if self._unsynced:
            due = min(due, self._unsynced[0][1] + SYNC_AFTER)
        if not self._client and not self._holds_any():
            due = self._patience
        return None if due == math.inf else max(0.0, due - time.monotonic())

    # --- the client

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(SAY_PATIENCE)
        self._drop_client()
        self._client = connection
        self._selector.register(connection, selectors.EVENT_READ, self._hear)
        self._say("hello", 0, version=VERSION, running=list(self._runs), stuck=list(self._stuck))

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
        self._make_room()
        try:
            run = Run(id, open_run(order["run"]))
        except OSError as error:
            self._say("ended", id, **_not_started(error))
            return
        before = read_records(run.descriptor)
        if "started" in before:
            os.close(run.descriptor)
            end = before.get("ended") or {"lost": True}
            self._say("ended", id, **before.get("killed", {}), **end)
            return
        self._runs[id] = run
        run.oom_kills = read_oom_kills(self._oom_counter)
        try:
            write_record(run.descriptor, "started", identify(0))
            run.pid = self._spawn(order)
        except OSError as error:
            self._end(run, None, **_not_started(error))
            return
        run.keep("started", identify(run.pid))
        self._by_pid[run.pid] = run
        if order["timeout"] is not None:
            run.limit_at = run.began + order["timeout"]
            run.limit = order["limit"]
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
            run.keep("killed", run.killed(), durable=True)
            signal_group(run.pid, signal.SIGTERM)
            run.limit_at = math.inf
            run.due_at = time.monotonic() + grace
        self._say("killing", id)

    def _do_due(self) -> None:
        now = time.monotonic()
        self._sync(now - SYNC_AFTER)
        for run in list(self._runs.values()):
            if run.end is not None and not run.is_left(now):
                self._let_go(run)
            elif now >= run.due_at:
                if run.dying:
                    self._give_up(run)
                else:
                    self._send_sigkill(run)
            elif now >= run.limit_at:
                self._kill(run.id, "limit", run.grace)
        for run in list(self._stuck.values()):
            if not run.is_left(now) and run.pid not in self._by_pid:
                del self._stuck[run.id]
                self._say("gone", run.id)

    def _send_sigkill(self, run: Run) -> None:
        run.limit_at = math.inf
        if not run.dying:
            run.dying = True
            run.due_at = time.monotonic() + STUCK_AFTER
        signal_group(run.pid, signal.SIGKILL)

    def _give_up(self, run: Run) -> None:
        """What SIGKILL has not ended is none of the payload's any more, but takes its slot."""
        if run.end is None:
            run.end = {"exit_code": None, "signal": None}
        run.end["stuck"] = True
        run.keep("ended", run.end)
        self._stuck[run.id] = run
        run.due_at = math.inf
        run.look_at = time.monotonic()
        self._let_go(run)

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
                self._send_sigkill(run)
            _, status, usage = os.wait4(found.si_pid, 0)
            if run is not None and run.id not in self._stuck:
                cpu_s = round(usage.ru_utime + usage.ru_stime, 6)
                self._end(run, status, cpu_s=cpu_s, max_rss=usage.ru_maxrss * 1024)

    def _end(self, run: Run, status: int | None, **more: Any) -> None:
        """Keep how run.sh ended; it is told once nothing is left that may write to its files."""
        run.end = {"exit_code": None, "signal": None, **more}
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            run.end["exit_code"] = code if code >= 0 else 128 - code
            run.end["signal"] = -code if code < 0 else None
            run.end["wall_s"] = round(time.monotonic() - run.began, 6)
            if run.end["exit_code"] == KILLED and run.cause is None:
                run.end["oom"] = self._memory_ran_out(run)
        run.keep("ended", run.end)
        run.look_at = time.monotonic() + run.look
        if not run.pid or not signal_group(run.pid, 0):
            self._let_go(run)

    def _memory_ran_out(self, run: Run) -> bool:
        kills = read_oom_kills(self._oom_counter)
        return kills is not None and run.oom_kills is not None and kills > run.oom_kills

    def _let_go(self, run: Run) -> None:
        del self._runs[run.id]
        self._say("ended", run.id, **run.killed(), **(run.end or {}))
        fcntl.flock(run.descriptor, fcntl.LOCK_UN)
        self._unsynced.append((run.descriptor, time.monotonic()))
        self._make_room()

    def _make_room(self) -> None:
        """Leave files to be opened for other runs."""
        while self._unsynced and len(self._unsynced) + len(self._runs) >= self._open_most:
            self._sync(self._unsynced[0][1])

    def _sync(self, before: float) -> None:
        """Make the ends until then outlive a power cut, and let go of them. One whose payload was
        acknowledged and removed meanwhile need not."""
        while self._unsynced and self._unsynced[0][1] <= before:
            descriptor, _ = self._unsynced.popleft()
            try:
                if os.fstat(descriptor).st_nlink:
                    os.fsync(descriptor)
            except OSError as error:
                complain(f"an end cannot be kept: {error.strerror}")
            os.close(descriptor)


def _not_started(error: OSError) -> dict[str, Any]:
    reason = f"run.sh could not be started: {error.strerror}"
    return {"error": reason, "no_room": error.errno in NO_SPACE}


_ALL_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def main(data_path: str, open_files: int, ready: int) -> None:
    """Serve the client of this DATA_PATH; `ready` is closed once it can connect.

    `open_files` is the soft limit of jobs, which the client has raised for itself.
    """
    os.chdir(data_path)
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # Somebody has lowered the hard one meanwhile.
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
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
