"""The database: one writer that commits in groups, readers of their own, and its migrations."""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator_server.store.broken import give_up
from orchestrator_server.store.copies import copy_database
from orchestrator_server.store.queries import migrations, sql
from orchestrator_shared.errors import NoSpace, StartError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]
Row = sqlite3.Row

#: How long a statement waits while somebody else locks the database (seconds).
BUSY_TIMEOUT: Final = 15.0
#: The most steps that one transaction commits together.
GROUP_LIMIT: Final = 256
READERS: Final = 2
#: How long a step that nobody waits for is held back (seconds).
HOLD: Final = 0.02
#: How often the writer looks whether the lock of somebody else is gone (seconds).
BUSY_LOOK: Final = 0.02


#: What SQLite says where the content of a database makes no sense.
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


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
    if _code(error) in _DAMAGED:
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


def _code(error: Exception) -> int:
    """The primary result code of SQLite; 0 where it is not SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _is_busy(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _translate(error: sqlite3.Error) -> Exception:
    """What an error of SQLite means to a caller."""
    if _is_busy(error):
        return Unavailable(problem="somebody else locks the database")
    if _code(error) == sqlite3.SQLITE_FULL:
        return NoSpace(problem="the disk of the database is full")
    return error


def _is_fatal(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_IOERR, *_DAMAGED)


@dataclass(frozen=True, slots=True)
class _Write:
    """A step that waits for the writer, who waits for its outcome, since when, and what follows."""

    step: Step[Any]
    future: asyncio.Future[Any]
    since: float
    then: Mapping[str, Step[Any]]


#: The future of a step, its value, and what it raised.
_Outcome = tuple[asyncio.Future[Any], Any, Exception | None]
#: Called with what a transaction changed (rows of history), and with the names of what followed.
OnCommit = Callable[[list[Row], Collection[str]], None]
_NOTHING: Final[Mapping[str, Step[Any]]] = {}


class Database:
    """All access to the database of one server.

    A *step* is a plain function of a connection. `write` hands it to the one thread that owns the
    write connection: it commits what has gathered meanwhile in one transaction, where a step that
    fails undoes nothing but itself, and answers each caller after the commit. `read` runs it in a
    thread with a connection of its own, and sees everything that was committed before.
    """

    def __init__(self, path: Path, on_commit: OnCommit) -> None:
        """`on_commit` is called in the event loop."""
        self._path = path
        self._on_commit = on_commit
        self._steps: queue.SimpleQueue[list[_Write] | None] = queue.SimpleQueue()
        self._held: list[_Write] = []
        self._holding: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._local = threading.local()
        self._readers: ThreadPoolExecutor | None = None
        self._reading: list[sqlite3.Connection] = []
        self._writing: sqlite3.Connection | None = None
        self._hurried = threading.Event()
        self._last_seq = 0

    async def open(self) -> None:
        """Connect, migrate, and begin to take steps.

        Raises:
            StoreUnusable: it is damaged, of a newer version, or cannot be opened.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._writing = connect(self._path)
            migrate(self._writing, self._path)
            self._writing.execute("PRAGMA busy_timeout = 0")  # _begin() waits
            self._last_seq = self._writing.execute(sql("last_event")).fetchone()["seq"]
        except sqlite3.Error as error:
            raise StoreUnusable(path=self._path, problem=f"{error}.") from error
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._thread = threading.Thread(target=self._write_all, name="writer", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Wait for nobody's lock any more: what cannot be written at once is refused."""
        self._hurried.set()

    async def close(self) -> None:
        """Commit what has been handed over, and disconnect."""
        if self._thread is not None and self._readers is not None:
            self.hurry()
            self._hand_over()
            self._steps.put(None)
            await asyncio.to_thread(self._thread.join)
            await asyncio.to_thread(self._readers.shutdown)
            for connection in self._reading:
                connection.close()
            self._reading.clear()
        if self._writing is not None:
            self._writing.close()
        self._thread = self._readers = self._writing = None

    def write(
        self, step: Step[T], *, soon: bool = True, then: Mapping[str, Step[Any]] = _NOTHING
    ) -> asyncio.Future[T]:
        """Run a step that changes something; done once it is durable.

        Steps run in the order of these calls. What a step raises undoes that step alone, and is
        raised here. One that nobody waits for need not be `soon`: it is committed with the next
        that is, after HOLD at the latest. Of a job that takes no time all that its client tells
        is one commit instead of three.

        `then` are steps by name that follow in the same transaction, each once, whoever named it.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._held.append(_Write(step, future, time.monotonic(), then))
        if soon:
            self._hand_over()
        elif self._holding is None:
            self._holding = self._loop.call_later(HOLD, self._hand_over)
        return future

    def _hand_over(self) -> None:
        """Give the writer what was held back, in order and as one."""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        if self._held:
            self._steps.put(self._held)
            self._held = []

    async def read(self, step: Step[T]) -> T:
        """Run a step that only reads; all its statements see the same state."""
        return await self._loop.run_in_executor(self._readers, self._read, step)

    @property
    def problem(self) -> str | None:
        """Why nothing can be written; None while it can."""
        if self._thread is not None and not self._thread.is_alive():
            return "the writer of the database died"
        return None

    def _reader(self) -> sqlite3.Connection:
        """The connection of this thread, made when it is first needed."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            self._reading.append(connection)
        return connection

    def _read(self, step: Step[T]) -> T:
        try:
            connection = self._reader()
            connection.execute("BEGIN")
            try:
                return step(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if _code(error) in _DAMAGED:
                give_up(unusable(self._path, error))
            raise _translate(error) from error

    def _write_all(self) -> None:
        """The life of the writer: gather, commit, answer."""
        while (first := self._steps.get()) is not None:
            group = first
            stop = False
            while len(group) < GROUP_LIMIT:
                try:
                    item = self._steps.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    stop = True
                    break
                group += item
            self._commit(group)
            if stop:
                return

    def _commit(self, group: list[_Write]) -> None:
        connection = self._writing
        assert connection is not None  # noqa: S101 - open() set it before the thread began
        followed: list[str] = []
        changes: list[Row] = []
        try:
            self._begin(connection, group[0].since + BUSY_TIMEOUT)
            outcomes = self._take_all(connection, group)
            for name, step in {n: s for write in group for n, s in write.then.items()}.items():
                _, error = self._take(connection, step)
                if error is None:
                    followed.append(name)
            changes = connection.execute(sql("changes_since"), {"after": self._last_seq}).fetchall()
            connection.execute("COMMIT")
        except Exception as error:
            if _is_fatal(error):
                give_up(unusable(self._path, error))
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            failure = _translate(error) if isinstance(error, sqlite3.Error) else error
            outcomes = [(write.future, None, failure) for write in group]
            changes = []
        if changes:
            self._last_seq = changes[-1]["seq"]
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._answer, outcomes, changes, followed)

    def _begin(self, connection: sqlite3.Connection, deadline: float) -> None:
        """Begin a transaction; while somebody else locks the database, wait in sight of the end."""
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                if self._hurried.wait(BUSY_LOOK):
                    raise

    def _take_all(self, connection: sqlite3.Connection, group: Sequence[_Write]) -> list[_Outcome]:
        """All steps of a transaction, as if none could fail: to be ready to undo each takes as long
        as the steps. If one does fail, all are undone, and taken again one by one."""
        try:
            return [(write.future, write.step(connection), None) for write in group]
        except Exception as error:
            if _is_fatal(error) or not connection.in_transaction:
                raise
        connection.execute("ROLLBACK")
        self._begin(connection, group[0].since + BUSY_TIMEOUT)
        return [(write.future, *self._take(connection, write.step)) for write in group]

    def _take(self, connection: sqlite3.Connection, step: Step[T]) -> tuple[Any, Exception | None]:
        """One step in its savepoint: its value, or what it raised."""
        connection.execute("SAVEPOINT step")
        try:
            value = step(connection)
        except Exception as error:
            if _is_fatal(error) or not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO step")
            connection.execute("RELEASE step")
            return None, _translate(error) if isinstance(error, sqlite3.Error) else error
        connection.execute("RELEASE step")
        return value, None

    def _answer(
        self,
        outcomes: Sequence[_Outcome],
        changes: list[Row],
        followed: Collection[str],
    ) -> None:
        for future, value, error in outcomes:
            if future.done():  # its caller has gone
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        if changes:
            self._on_commit(changes, followed)
