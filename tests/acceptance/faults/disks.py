"""What happens to files: small disks that are full when a test wants them to be, files that may
not grow, a database that somebody else locks."""

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.processes import Program


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, but: int = 0) -> None:
        """Leave so many bytes free. Others may write at the same time: then it is tried again."""
        with open(self._ballast, "ab") as file:
            while (free := self._free() - but) > 0:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + free)

    def _free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def free(self) -> None:
        """Give back what was taken."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mount one at this path, and unmount it in any case."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path)]
    mounting = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounting.returncode != 0:
        pytest.skip(f"a disk that is small enough to fill cannot be mounted: {mounting.stderr}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextlib.contextmanager
def files_end_at(program: Program, size: int) -> Iterator[None]:
    """Whatever this program writes behind so many bytes of a file fails (EFBIG)."""
    pid = program.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        if not program.has_ended:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextlib.asynccontextmanager
async def locked(database: Path) -> AsyncIterator[None]:
    """Nobody else writes to it meanwhile: as while somebody uses sqlite3 on the command line."""
    connection = sqlite3.connect(
        database, isolation_level=None, timeout=30, check_same_thread=False
    )
    try:
        await asyncio.to_thread(connection.execute, "BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()
