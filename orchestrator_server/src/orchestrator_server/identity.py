"""Which server this is: one process, one database and one DATA_PATH that belong together."""

import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator_server.config import Config
from orchestrator_server.store.database import StoreUnusable, connect, migrate
from orchestrator_server.store.queries import sql
from orchestrator_shared.errors import SettingError, StartError
from orchestrator_shared.folders import FolderLock, write_whole

OWNER: Final = "an orch-server"


class PairBroken(StartError):
    """The database {db_path} and DATA_PATH {data_path} do not belong together: {problem}. Nothing
    was touched. Set DB_PATH and DATA_PATH to the two that do, or restore both from one backup."""


@dataclass(frozen=True)
class Identity:
    """The id of this server, and its locks, which hold for the life of the process."""

    id: str
    locks: tuple[FolderLock, ...]

    def release(self) -> None:
        """Give the locks back."""
        for lock in self.locks:
            lock.release()


def take_identity(config: Config) -> Identity:
    """Lock database and DATA_PATH, bring the schema up to date, and check that they are a pair.

    Raises:
        SettingError: a path cannot be written, or another process has it.
        PairBroken: they are no pair; nothing was touched.
        StoreUnusable: the database is damaged, or of a newer version.
    """
    db_lock = config.db_path.with_name(config.db_path.name + ".lock")
    locks = (
        FolderLock(db_lock, config.db_path, "DB_PATH", OWNER),
        FolderLock(config.data_path / "lock", config.data_path, "DATA_PATH", OWNER),
    )
    try:
        id = _pair(config)
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    return Identity(id, locks)


def _pair(config: Config) -> str:
    id_file = config.data_path / "id"
    of_data = id_file.read_text().strip() if id_file.exists() else None
    of_database, empty = _peek(config.db_path)
    if of_database is None and of_data is not None:
        raise PairBroken(
            db_path=config.db_path,
            data_path=config.data_path,
            problem="there are files of jobs, but no database",
        )
    if of_database is not None and of_data is None and not empty:
        raise PairBroken(
            db_path=config.db_path,
            data_path=config.data_path,
            problem="the database has jobs, but the folder has no files of them",
        )
    if of_database is not None and of_data is not None and of_database != of_data:
        raise PairBroken(
            db_path=config.db_path,
            data_path=config.data_path,
            problem=f"their ids are {of_database} and {of_data}",
        )
    id = of_database or secrets.token_hex(16)
    _set_up(config.db_path, id)
    if of_data is None:
        write_whole(id_file, id.encode() + b"\n", durable=True)
    return id


def _peek(path: Path) -> tuple[str | None, bool]:
    """The id in a database, and whether it never had a job; None where there is no database."""
    if not path.exists() or path.stat().st_size == 0:
        return None, True
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            tables = {name for (name,) in connection.execute(sql("tables"))}
            if not tables:
                return None, True
            if not {"meta", "jobs", "history"} <= tables:
                raise SettingError(
                    setting="DB_PATH", problem=f"{path} is not a database of orch-server"
                )
            row = connection.execute(sql("meta"), {"key": "id"}).fetchone()
            jobs = connection.execute(sql("ever_had_jobs")).fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreUnusable(path=path, problem=f"{error}. Restore it from a backup.") from error
    return (row[0] if row else None), jobs[0] == 0


def _set_up(path: Path, id: str) -> None:
    try:
        connection = connect(path)
        try:
            migrate(connection, path)
            connection.execute(sql("set_meta"), {"key": "id", "value": id})
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreUnusable(path=path, problem=f"{error}.") from error
