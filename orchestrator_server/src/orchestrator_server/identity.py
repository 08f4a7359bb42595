"""Which server this is: one process, one database and one DATA_PATH that belong together."""

import contextlib
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from orchestrator_server.config import Config
from orchestrator_server.original_server import is_of_original
from orchestrator_server.store.connection import connect, migrate, unusable
from orchestrator_server.store.files import FOLDERS
from orchestrator_server.store.queries import sql
from orchestrator_shared.errors import SettingError, StartError
from orchestrator_shared.folders import FolderLock, fsync_folder, write_whole

T = TypeVar("T")

OWNER: Final = "an orch-server"
#: The folder in DATA_PATH that says that a restore has not come to its end.
RESTORING: Final = "restoring"


class PairBroken(StartError):
    """The database {db_path} and DATA_PATH {data_path} do not belong together: {problem}. Nothing
    was touched. Set DB_PATH and DATA_PATH to the two that do, or restore both from one backup."""


@dataclass(frozen=True)
class Identity:
    """The id of this server, and its locks, which hold for the life of the process."""

    id: str
    locks: contextlib.ExitStack

    def release(self) -> None:
        """Give the locks back."""
        self.locks.close()


def take_identity(config: Config) -> Identity:
    """Lock database and DATA_PATH, bring the schema up to date, and check that they are a pair.

    Raises:
        SettingError: a path cannot be used, or another process has it.
        PairBroken: they are no pair; nothing was touched.
        StoreUnusable: the database is damaged, or of a newer version.
    """
    found, locks = lock_pair(config, OWNER, look)
    with locks:
        return Identity(make_pair(config, found), locks.pop_all())


def lock_pair(
    config: Config, owner: str, look: Callable[[Config], T]
) -> tuple[T, contextlib.ExitStack]:
    """Lock database and DATA_PATH for `owner`; gives back what `look` saw, and the locks.

    `look` raises where the pair is not as it has to be. A lock that is there says who has it. One
    that is missing is made only once the pair has been looked at, so that nothing is left behind
    where it is refused.

    Raises:
        SettingError: a path cannot be used, or another process has it.
    """
    wanted = {
        config.db_path.with_name(config.db_path.name + ".lock"): (config.db_path, "DB_PATH"),
        config.data_path / "lock": (config.data_path, "DATA_PATH"),
    }
    with contextlib.ExitStack() as locks:
        try:
            for there in (True, False):
                for lock in [lock for lock in wanted if lock.exists() is there]:
                    what, setting = wanted[lock]
                    locks.callback(FolderLock(lock, what, setting, owner).release)
                found = look(config)
        except PermissionError as error:
            raise SettingError(
                setting="DB_PATH, DATA_PATH",
                problem=f"{error.filename} cannot be read: {error.strerror}",
            ) from error
        return found, locks.pop_all()


@dataclass(frozen=True, slots=True)
class Found:
    """What the two say of themselves: their ids, and whether the database was ever one of two."""

    database: str | None
    data: str | None
    paired: bool


def look(config: Config) -> Found:
    """Look at both, and touch neither.

    Raises:
        PairBroken: they are no pair.
        SettingError: a path has something else.
        StoreUnusable: the database is damaged.
    """
    id_file = config.data_path / "id"
    of_data = id_file.read_text().strip() if id_file.exists() else None
    of_database, paired = _peek(config.db_path)
    problem = None
    if (config.data_path / RESTORING).exists():
        problem = "a restore into the folder was cut off; run it again"
    elif of_database is None and of_data is not None:
        problem = "the folder belongs to a database, which is missing"
    elif paired and of_data is None:
        problem = "the database belongs to a folder with the files of its jobs, which is missing"
    elif of_database is not None and of_data is not None and of_database != of_data:
        problem = f"their ids are {of_database} and {of_data}"
    if problem is not None:
        raise PairBroken(db_path=config.db_path, data_path=config.data_path, problem=problem)
    if of_data is None:
        for name in FOLDERS:
            if (config.data_path / name).exists():
                raise SettingError(
                    setting="DATA_PATH",
                    problem=f"{config.data_path} has a folder '{name}' that is not of orch-server; "
                    "choose an empty one",
                )
    return Found(of_database, of_data, paired)


def _peek(path: Path) -> tuple[str | None, bool]:
    """The id in a database, if there is one, and whether a folder has been given the same."""
    if path.is_dir():
        raise SettingError(setting="DB_PATH", problem=f"{path} is a directory")
    if not path.exists() or path.stat().st_size == 0:
        return None, False
    # Without the file that SQLite writes ahead to nothing else is to be read, or to be made.
    mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True)
        ) as connection:
            tables = {name for (name,) in connection.execute(sql("tables"))}
            if not tables:
                return None, False
            if is_of_original(connection):
                raise SettingError(
                    setting="DB_PATH",
                    problem=f"{path} is the database of an original server, and stays as it is; "
                    "name another, and take its jobs over with orch-server import-legacy "
                    f"{path} DATA, where DATA is the folder of their files",
                )
            if not {"meta", "jobs", "history"} <= tables:
                raise SettingError(
                    setting="DB_PATH", problem=f"{path} is not a database of orch-server"
                )
            id, paired = (
                connection.execute(sql("meta"), {"key": key}).fetchone() for key in ("id", "paired")
            )
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    return (id[0] if id else None), paired is not None


def make_pair(config: Config, found: Found) -> str:
    """Bring the schema up to date; where they are new, give both the same id. `found` is what
    `look` saw under the locks.

    The database is marked as paired last: a first start that was cut short is begun again.

    Raises:
        SettingError: DATA_PATH cannot be written.
        StoreUnusable: the database is damaged, or of a newer version.
    """
    id = found.database or secrets.token_hex(16)
    try:
        with contextlib.closing(connect(config.db_path)) as connection:
            migrate(connection, config.db_path)
            if not found.paired:
                connection.execute(sql("set_meta"), {"key": "id", "value": id})
                fsync_folder(config.db_path.parent)
                if found.data is None:
                    write_whole(config.data_path / "id", id.encode() + b"\n", durable=True)
                connection.execute(sql("set_meta"), {"key": "paired", "value": "yes"})
    except sqlite3.Error as error:
        raise unusable(config.db_path, error) from error
    except OSError as error:
        raise SettingError(
            setting="DATA_PATH",
            problem=f"{config.data_path} cannot be written: {error.strerror}",
        ) from error
    return id
