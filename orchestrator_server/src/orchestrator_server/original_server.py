"""What a stopped server of the original has left: read, and never written to.

Its database is copied before it is opened: SQLite would take up what a kill has left beside it.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

from orchestrator_server.store.copies import opened
from orchestrator_server.store.queries import sql
from orchestrator_shared.errors import StartError
from orchestrator_shared.folders import remove_tree
from orchestrator_shared.protocol import service_name

#: What SQLite keeps beside a database: the locks of who has it open, and what is not in it yet.
_SHM: Final = "-shm"
_PENDING: Final = ("-wal", "-journal")
_COLUMNS: Final = frozenset({"id", "user_id", "service", "status", "loc", "dest_id", "created_at"})
#: `struct flock` of Linux where a file's offset has 64 bits: type, whence, start, length, process.
_FLOCK: Final = "hhqqi4x"


class ImportFailed(StartError):
    """Nothing is taken over: {problem}"""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class OriginalJob:
    """A row of its table of jobs."""

    id: int
    user_id: int
    service: str
    #: In lower case.
    status: str
    loc: str
    #: The id of its payload at the client; None: it was sent to none.
    dest_id: int | None
    #: Seconds since 1970; None where that is not known.
    created_at: float | None

    def folder(self, data: Path) -> Path | None:
        """Where its files are now, whatever `loc` says; None if there is no such folder."""
        name = PurePosixPath(self.loc).name
        folder = data / name
        return folder if name not in ("", "..") and folder.is_dir() else None


@dataclass(frozen=True, slots=True)
class OriginalServer:
    """Its jobs in the order of their ids, and the highest id that it ever gave."""

    jobs: list[OriginalJob]
    highest_id: int


def is_of_original(connection: sqlite3.Connection) -> bool:
    """Whether a database has the table of jobs of the original: ours has other columns."""
    columns = connection.execute("PRAGMA table_info(jobs)").fetchall()
    return {column[1] for column in columns} >= _COLUMNS


def check_stopped(database: Path) -> None:
    """See to it that nobody has the database open.

    A process of another user cannot always be seen; one in the middle of a change, or with a
    write-ahead log, has a lock all the same. Nothing is locked here.

    Raises:
        ImportFailed: somebody has.
        OSError: it cannot be read.
    """
    beside = [_beside(database, end) for end in (*_PENDING, _SHM)]
    there = [database, *(file for file in beside if file.exists())]
    holder = _who_has_open({_identity(file) for file in there})
    if holder is None:
        holder = next(filter(None, map(_who_locks, there)), None)
    if holder is not None:
        raise ImportFailed(
            problem=f"{database} is in use by {holder}; stop the original server first"
        )


def read_original(database: Path, scratch: Path) -> OriginalServer:
    """Read the jobs of the original from a copy, which is made in the folder `scratch`.

    Raises:
        ImportFailed: it is no database of the original, or one that does not make sense.
        OSError: it cannot be read, or not be copied.
    """
    remove_tree(scratch)
    scratch.mkdir(mode=0o700)
    try:
        copy = scratch / "original.sqlite"
        shutil.copyfile(database, copy)
        for end in _PENDING:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(_beside(database, end), _beside(copy, end))
        with opened(copy) as connection:
            connection.row_factory = sqlite3.Row
            if not is_of_original(connection):
                raise ImportFailed(problem=f"{database} is not a database of an original server")
            jobs = [_job(row) for row in connection.execute(sql("original_jobs"))]
            last = connection.execute(sql("last_original_id")).fetchone()
            highest = max(
                [job.id for job in jobs[-1:]] + ([last["seq"]] if last else []), default=0
            )
    except sqlite3.Error as error:
        raise ImportFailed(
            problem=f"{database} is not a database of an original server ({error})"
        ) from error
    finally:
        remove_tree(scratch)
    return OriginalServer(jobs, highest)


def _job(row: sqlite3.Row) -> OriginalJob:
    """A row, if all of it can be a job here too.

    Raises:
        ImportFailed: it cannot.
    """
    for name, kind in (("user_id", int), ("service", str), ("status", str), ("loc", str)):
        if not isinstance(row[name], kind):
            raise ImportFailed(problem=f"its job {row['id']} has no {name} that makes sense")
    if row["user_id"] < 0 or row["id"] < 1:
        raise ImportFailed(
            problem=f"its job {row['id']} is of user {row['user_id']}, and ids begin at 1 here, "
            "those of users at 0; give it another in a copy of the database"
        )
    dest_id = row["dest_id"]
    return OriginalJob(
        id=row["id"],
        user_id=row["user_id"],
        service=service_name(row["service"]),
        status=row["status"].lower(),
        loc=row["loc"],
        dest_id=dest_id if isinstance(dest_id, int) and dest_id > 0 else None,
        created_at=_seconds(row["created_at"]),
    )


def _seconds(text: Any) -> float | None:
    """A time as SQLite's CURRENT_TIMESTAMP writes it, in UTC."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


# --- who has it open


def _beside(database: Path, end: str) -> Path:
    return database.with_name(database.name + end)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _who_has_open(files: Collection[tuple[int, int]]) -> str | None:
    """A process that has one of these files open, as far as this one may see."""
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        if pid != os.getpid() and any(found in files for found in _open_files(process)):
            return _name(pid)
    return None


def _open_files(process: Path) -> Iterator[tuple[int, int]]:
    # It may end meanwhile, or be somebody else's.
    with contextlib.suppress(OSError):
        for descriptor in process.joinpath("fd").iterdir():
            with contextlib.suppress(OSError):
                # By way of the file and not of its name: in a container that is another.
                yield _identity(descriptor)


def _who_locks(file: Path) -> str | None:
    """Who has a lock on a part of the file, as SQLite takes them. It is asked for, not taken."""
    with open(file, "rb") as descriptor:
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else _name(pid)


def _name(pid: int) -> str:
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return "a process elsewhere" if pid < 1 else f"process {pid}"
