"""Copies of the database and of the files of jobs, made while a server goes on with them."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from orchestrator_server.store.queries import sql
from orchestrator_shared.folders import fsync_file, fsync_folder


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a record names: where it lies below the folder of jobs, and its bytes."""

    job: int
    path: Path
    size: int

    def is_whole(self, jobs: Path) -> bool:
        """Whether it lies below this folder of jobs, as long as its record says."""
        try:
            return (jobs / self.path).stat().st_size == self.size
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database that is there; it makes none, and changes nothing by itself."""
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None)
    ) as connection:
        yield connection


def copy_database(source: sqlite3.Connection, target: Path) -> None:
    """Write what a database holds at one moment into a file of its own, for its owner alone.

    Nobody who writes to the database waits for that. The file is durable once this returns, and
    has its name only once it is whole.
    """
    temporary = target.with_name(target.name + ".new")
    temporary.unlink(missing_ok=True)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(temporary)) as writing:
            source.backup(writing)
            # One file, and none beside it.
            writing.execute("PRAGMA journal_mode = DELETE")
        fsync_file(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(target.parent)


def files_of_jobs(connection: sqlite3.Connection) -> Iterator[NamedFile]:
    """Every file that a record names."""
    for job, folder, file, size in connection.execute(sql("files_of_jobs")):
        yield NamedFile(job, Path(folder) / file, size)


def link_or_copy(source: Path, target: Path, temporary: Path) -> None:
    """Give a file of a job a second name; where that cannot be, as on another disk, copy it.

    These files never change, so that a second name is as good as a copy. What has the name of
    the target is replaced; `temporary` is a name on the same disk.

    Raises:
        FileNotFoundError: the file is not there (any more).
    """
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def make_durable(root: Path) -> None:
    """Bring everything below a folder to the disk, contents and names."""
    for folder, _, names in os.walk(root):
        for name in names:
            fsync_file(Path(folder) / name)
        fsync_folder(Path(folder))
