"""What the system tells of processes, for the supervisor and the client.

Nothing is imported here but the standard library: the supervisor is to cost little.
"""

import contextlib
import functools
import os
import signal
import time
from typing import Any

#: How long the rest of a session is waited for, and how often it is looked at (seconds).
SESSION_PATIENCE = 5.0
SESSION_LOOK = 0.02


@functools.cache
def boot_id() -> str:
    """Which boot of the machine this is."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def read_stat(pid: int) -> tuple[str, int, int, int]:
    """State, session, start (in clock ticks since the boot) and process group; zeros for none.

    Fields 3, 6, 22 and 5 of /proc/<pid>/stat (proc_pid_stat(5)), behind a name that may hold
    anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[3]), int(fields[19]), int(fields[2])
    except (OSError, IndexError, ValueError):
        return "", 0, 0, 0


def _all_stats() -> list[tuple[int, str, int, int, int]]:
    """Every process that runs, and what read_stat says of it; zombies do not run."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    stats = [(pid, *read_stat(pid)) for pid in pids]
    return [stat for stat in stats if stat[1] not in ("", "Z", "X")]


def identify(pid: int) -> dict[str, Any]:
    """What tells a process from any other that ever had its number."""
    return {"boot": boot_id(), "pid": pid, "ticks": read_stat(pid)[2]}


def signal_group(group: int, number: int) -> bool:
    """Signal a process group; False if nothing of it is left."""
    with contextlib.suppress(PermissionError):  # It is there, as somebody else by now.
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return False
    return True


def group_runs(group: int) -> bool:
    """Whether something of a process group runs: more than a zombie that nobody collects."""
    return any(its == group for *_, its in _all_stats())


def end_session(session: int, ticks: int) -> None:
    """Kill what is left of the session of a process that began then, and wait until it is gone."""
    if read_stat(session)[2] not in (0, ticks):
        # The number is another's now: it was free, so nothing of the session was left.
        return
    for _ in range(int(SESSION_PATIENCE / SESSION_LOOK)):
        left = [pid for pid, _, its, _, _ in _all_stats() if its == session]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(SESSION_LOOK)


def oom_counter() -> str:
    """The file that counts what the kernel killed, as memory had run out, where our jobs run.

    `memory.events` of our control group counts what happens in it and below
    (Documentation/admin-guide/cgroup-v2.rst); `memory.oom_control` is its elder; where there is no
    such group it is the count of the whole machine.
    """
    places: list[str] = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if not controllers:
                places.append(f"/sys/fs/cgroup{path}/memory.events")
            elif "memory" in controllers.split(","):
                # The second, as in a container the first is a path outside of it.
                places.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
                places.append("/sys/fs/cgroup/memory/memory.oom_control")
    counts = (place for place in places if read_oom_kills(place) is not None)
    return next(counts, "/proc/vmstat")


def read_oom_kills(path: str) -> int | None:
    """How often the kernel has killed, by this file; None if it does not tell."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
