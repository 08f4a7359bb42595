"""`orch-server restore DIR`: a backup becomes the server's database and files.

What happened after the backup is unknown here, but portals and clients may know of it. So a new
generation begins: the numbers of jobs and events go on above any that may have been given since,
and the server starts paused, until `orch-server resume`.

Nothing is overwritten. What was cut off is run again: a folder in DATA_PATH says so until the end.
"""

import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from orchestrator_server.backup import DATABASE, JOBS, MARKER, look_through
from orchestrator_server.config import Config
from orchestrator_server.identity import RESTORING, lock_pair
from orchestrator_server.operating import PAUSED
from orchestrator_server.store.copies import files_of_jobs, link_or_copy, make_durable, opened
from orchestrator_server.store.files import FOLDERS
from orchestrator_server.store.queries import sql
from orchestrator_shared.errors import StartError
from orchestrator_shared.folders import fsync_file, fsync_folder, remove_tree, write_whole

OWNER: Final = "a restore of orch-server"
#: How far the numbers of jobs and events go ahead: by so much, and by so much for each second
#: since the backup. So they are new even where the same backup was restored before.
AHEAD: Final = 1_000_000
AHEAD_PER_SECOND: Final = 1_000
#: Attempts go ahead by this part of it.
ATTEMPTS_SHARE: Final = 1_000


class RestoreFailed(StartError):
    """Nothing was restored: {problem}."""

    exit_code = 1


def restore(config: Config, source: Path) -> str:
    """Put a backup where there is no database and no file of a job (any more).

    The database comes last. Gives back a line that says what to do next.

    Raises:
        RestoreFailed: the folder is no backup or a damaged one, or something is in the way.
        SettingError: a path cannot be used, or a server runs on it.
        StoreUnusable: the backup is of a newer version.
    """
    try:
        marker = _check(source)
        _, locks = lock_pair(config, OWNER, _refuse_what_is_there)
        with locks:
            config.data_path.joinpath(RESTORING).mkdir(mode=0o700, exist_ok=True)
            fsync_folder(config.data_path)
            _put(config, source, marker)
            remove_tree(config.data_path / RESTORING)
            fsync_folder(config.data_path)
    except OSError as error:
        problem = f"{error.filename or source}: {error.strerror}"
        raise RestoreFailed(problem=problem) from error
    except sqlite3.Error as error:
        raise RestoreFailed(problem=f"the database in {source}: {error}") from error
    return (
        f"{marker['jobs']} jobs are restored. The server will start paused: look at GET /clients "
        "and GET /jobs, then run orch-server resume"
    )


def _refuse_what_is_there(config: Config) -> None:
    """Nothing may be in the way but what a restore that was cut off has left."""
    database, data = config.db_path, config.data_path
    found = [database.with_name(database.name + end) for end in ("", "-wal", "-shm", "-journal")]
    there = [path for path in found if path.exists()]
    if not (data / RESTORING).exists() and any((data / name).exists() for name in ("id", *FOLDERS)):
        there.append(data)
    if there:
        names = " and ".join(map(str, there))
        raise RestoreFailed(problem=f"{names} would be overwritten; move what is there away first")


def _check(source: Path) -> dict[str, Any]:
    """Whether it is a backup, and a whole one; gives back what its marker says."""
    try:
        marker: dict[str, Any] = json.loads((source / MARKER).read_bytes())
    except FileNotFoundError:
        raise RestoreFailed(
            problem=f"{source} is no backup that came to its end, as it has no {MARKER}"
        ) from None
    except ValueError as error:
        raise RestoreFailed(problem=f"{source / MARKER}: {error}") from error
    missing = look_through(source / DATABASE, source / JOBS)
    if missing:
        file = source / JOBS / missing[0].path
        raise RestoreFailed(problem=f"{file} of job {missing[0].job} is missing or cut short")
    return marker


def _put(config: Config, source: Path, marker: dict[str, Any]) -> None:
    jobs, restoring = config.data_path / "jobs", config.data_path / RESTORING
    jobs.mkdir(mode=0o700, exist_ok=True)
    with opened(source / DATABASE) as connection:
        for file in files_of_jobs(connection):
            (jobs / file.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            old = source / JOBS / file.path
            link_or_copy(old, jobs / file.path, restoring / "copying")
    make_durable(jobs)
    database = config.db_path.with_name(config.db_path.name + ".restoring")
    shutil.copyfile(source / DATABASE, database)
    database.chmod(0o600)
    id = _begin_generation(database, time.time() - marker["at"])
    fsync_file(database)
    write_whole(config.data_path / "id", id.encode() + b"\n", durable=True)
    database.replace(config.db_path)
    fsync_folder(config.db_path.parent)


def _begin_generation(database: Path, age: float) -> str:
    """`age`: how long ago (seconds) the backup was made. Gives back the id of the server."""
    ahead = AHEAD + max(0, round(AHEAD_PER_SECOND * age))
    with opened(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(sql("begin_numbers"))
        connection.execute(sql("skip_numbers"), {"ahead": ahead})
        connection.execute(sql("raise_attempts"), {"ahead": ahead // ATTEMPTS_SHARE})
        connection.execute(sql("set_meta"), {"key": PAUSED, "value": "1"})
        connection.execute("COMMIT")
        id: str
        (id,) = connection.execute(sql("meta"), {"key": "id"}).fetchone()
    return id
