"""`orch-server backup DIR`, while the server runs or not: database and files that belong together.

The database is copied first, then the files that this copy names. Those never change, so that a
second name (a hard link) serves as a copy. Only the Cleaner may take one away in between: then
both are looked at again.
"""

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from orchestrator_server.config import Config
from orchestrator_server.identity import look
from orchestrator_server.store.connection import check_version, damaged
from orchestrator_server.store.copies import (
    NamedFile,
    copy_database,
    files_of_jobs,
    link_or_copy,
    make_durable,
    opened,
)
from orchestrator_server.store.queries import sql
from orchestrator_shared import __version__
from orchestrator_shared.errors import StartError
from orchestrator_shared.folders import remove_tree, write_whole

#: What a backup has: the database, the folder of files, and what makes it one, written last. It
#: has no `id` as a DATA_PATH has: no server starts on it.
DATABASE: Final = "orch-server.sqlite"
JOBS: Final = "jobs"
MARKER: Final = "backup.json"
#: How often the database is copied until no file that it names is taken away meanwhile.
TRIES: Final = 5


class BackupFailed(StartError):
    """No backup was made: {problem}."""

    exit_code = 1


def back_up(config: Config, target: Path) -> str:
    """Write a backup into a new or empty folder; gives back a line that says what it holds.

    Raises:
        BackupFailed: the folder has something in it or cannot be written, there is no database, or
            a file that it names is missing.
        PairBroken: database and DATA_PATH do not belong together.
        StoreUnusable: the database is damaged, or of a newer version.
    """
    try:
        if look(config).data is None:
            raise BackupFailed(problem=f"no server was ever started with {config.db_path}")
        if target.exists() and any(target.iterdir()):
            raise BackupFailed(problem=f"{target} is not empty; name a new folder")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as failing:
            failing.callback(_remove, target)
            marker = _write(config, target)
            write_whole(target / MARKER, json.dumps(marker).encode() + b"\n", durable=True)
            failing.pop_all()
    except OSError as error:
        problem = f"{error.filename or target}: {error.strerror}"
        raise BackupFailed(problem=problem) from error
    except sqlite3.OperationalError as error:
        raise BackupFailed(problem=f"{config.db_path} to {target}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise damaged(config.db_path, error) from error
    return f"{marker['jobs']} jobs with {marker['files']} files are in {target}"


def look_through(database: Path, jobs: Path) -> list[NamedFile]:
    """Look at a backup: which files its database names that are not whole.

    Raises:
        sqlite3.DatabaseError: the database is damaged.
        StoreUnusable: it is of a newer version.
    """
    with opened(database) as connection:
        check_version(connection, database)
        # The quick one finds fault with sound databases in SQLite 3.40.
        for (found,) in connection.execute("PRAGMA integrity_check(1)"):
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(found.split()))
        return [file for file in files_of_jobs(connection) if not file.is_whole(jobs)]


def _write(config: Config, target: Path) -> dict[str, Any]:
    """Everything but the marker; gives back what that says."""
    database, jobs = target / DATABASE, target / JOBS
    jobs.mkdir(mode=0o700)
    for _ in range(TRIES):
        # Taken before the copy: numbers that are not in it were given after this moment.
        began = time.time()
        with opened(config.db_path) as connection:
            copy_database(connection, database)
        count, files = _take_files(config.data_path / "jobs", target)
        missing = look_through(database, jobs)
        if not missing:
            break
    else:
        raise BackupFailed(
            problem=f"{config.data_path / 'jobs' / missing[0].path} is missing or cut short; "
            f"put it back, or give it up with DELETE /jobs/{missing[0].job}"
        )
    make_durable(target)
    return {"at": began, "version": __version__, "jobs": count, "files": files}


def _take_files(source: Path, target: Path) -> tuple[int, int]:
    """Link or copy what the copied database names; gives back how many jobs and files it has."""
    files = 0
    with opened(target / DATABASE) as connection:
        for file in files_of_jobs(connection):
            files += 1
            place = target / JOBS / file.path
            if not place.exists():
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    link_or_copy(source / file.path, place, target / "copying")
        (jobs,) = connection.execute(sql("count_jobs")).fetchone()
    return jobs, files


def _remove(target: Path) -> None:
    """What there is of a backup that failed."""
    remove_tree(target / JOBS)
    for entry in list(target.iterdir()):
        entry.unlink()
