"""Limits that the system sets, and what works under them."""

import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what makes modes mean nothing to root.
_CAPABILITIES = (1, 2)
_AS_OWNER = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in {capabilities}:
        if ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0) != 0:
            sys.exit("cannot give up the rights of root")
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", *sys.argv[1:]])
"""


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk: a write to a file beyond so many bytes fails (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_descriptors() -> set[int]:
    """What this process has open, and the one descriptor that it takes to look."""
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}


@contextlib.contextmanager
def descriptors_below(highest: int) -> Iterator[None]:
    """No file can be opened whose descriptor would be as high as this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run_as_owner(code: str, *arguments: str | Path) -> str:
    """Run Python code to which modes mean what they mean to anybody but root; gives its output.

    Files still belong to who runs the tests: root gives up only what lets it pass over modes.
    """
    first = _AS_OWNER.format(capabilities=_CAPABILITIES)
    done = subprocess.run(
        [sys.executable, "-c", first, code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def highest_memory() -> int:
    """The most memory that this process has had in use (bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the system does not tell")


def memory_grown_by(code: str, *arguments: str | Path) -> int:
    """Run Python code that calls `begin()` once it has warmed up, in a process of its own.

    Gives how much more memory it had in use after that than before, at the most (bytes).
    """
    script = (
        "import atexit, sys\n"
        "from support.limits import highest_memory\n"
        "def begin():\n"
        "    before = highest_memory()\n"
        "    atexit.register(lambda: print(highest_memory() - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
