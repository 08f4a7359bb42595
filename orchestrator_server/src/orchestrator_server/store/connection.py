"""Connections to the database, and its schema: made, brought up to date, or refused."""

import sqlite3
from pathlib import Path
from typing import Final

from orchestrator_server.store.copies import copy_database
from orchestrator_server.store.queries import migrations
from orchestrator_shared.errors import StartError

#: How long a statement waits while somebody else locks the database (seconds).
BUSY_TIMEOUT: Final = 15.0
#: How much of the database each connection keeps in memory (bytes): the 2 MiB that are the default
#: are read again and again where 10,000 jobs are queued.
CACHE_SIZE: Final = 32 * 1024 * 1024

#: What SQLite says where the content of a database makes no sense.
DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreUnusable(StartError):
    """The database {path} cannot be used: {problem}"""

    exit_code = 3


def connect(path: Path) -> sqlite3.Connection:
    """A connection as all of ours are: transactions begun by hand, every commit durable."""
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # What is kept to undo a single step needs no file: that takes longer than the step.
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA cache_size = -{CACHE_SIZE // 1024}")
    return connection


def damaged(path: Path, problem: object) -> StoreUnusable:
    """What a damaged database is refused with, and the way out."""
    return StoreUnusable(
        path=path,
        problem=f"{problem}. It is damaged: move it and DATA_PATH away, then restore a backup "
        "(orch-server restore DIR).",
    )


def unusable(path: Path, error: Exception) -> StoreUnusable:
    """What an error of SQLite says of a database that cannot be used."""
    if error_code(error) in DAMAGED:
        return damaged(path, error)
    return StoreUnusable(path=path, problem=f"{error}.")


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the schema that a database has.

    Raises:
        StoreUnusable: the database was written by a newer version of this program.
    """
    known = len(migrations())
    present: int
    (present,) = connection.execute("PRAGMA user_version").fetchone()
    if present > known:
        raise StoreUnusable(
            path=path,
            problem=f"its schema has version {present}, this program knows up to {known}; "
            "install the version that wrote it, or a newer one.",
        )
    return present


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date in one transaction; what was there before is kept as a copy.

    Raises:
        StoreUnusable: the database was written by a newer version, or cannot be copied.
    """
    present, known = check_version(connection, path), migrations()
    if present == len(known):
        return
    if present > 0:
        before = path.with_name(f"{path.name}.before-{len(known)}")
        try:
            copy_database(connection, before)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnusable(
                path=path,
                problem=f"before its schema goes from version {present} to {len(known)} it is "
                f"copied to {before}, which failed: {error}.",
            ) from error
    missing = "\n".join(known[present:])
    connection.executescript(
        f"BEGIN IMMEDIATE;\n{missing}\nPRAGMA user_version = {len(known)};\nCOMMIT;"
    )


def error_code(error: Exception) -> int:
    """The primary result code of SQLite; 0 where it is not SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
