"""The database: one connection that writes, and commits in groups, and readers of their own."""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from orchestrator_server.store.broken import give_up
from orchestrator_server.store.connection import (
    BUSY_TIMEOUT,
    DAMAGED,
    StoreUnusable,
    connect,
    error_code,
    migrate,
    unusable,
)
from orchestrator_server.store.queries import sql
from orchestrator_shared.errors import NoSpace, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]
Row = sqlite3.Row

#: The most steps that one transaction commits together.
GROUP_LIMIT: Final = 256
READERS: Final = 2
#: How long a step that nobody waits for is held back (seconds).
HOLD: Final = 0.02
#: How often it is looked whether the lock of somebody else is gone (seconds).
BUSY_LOOK: Final = 0.02


def _is_busy(error: Exception) -> bool:
    return error_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _translate(error: Exception) -> Exception:
    """What an error means to a caller, if it is one of SQLite."""
    if _is_busy(error):
        return Unavailable(problem="somebody else locks the database")
    if error_code(error) == sqlite3.SQLITE_FULL:
        return NoSpace(problem="the disk of the database is full")
    return error


def _is_fatal(error: Exception) -> bool:
    return error_code(error) in (sqlite3.SQLITE_IOERR, *DAMAGED)


class _Write(Struct, frozen=True):
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

    A *step* is a plain function of a connection. `write` takes it into the transaction of all that
    has gathered meanwhile, where a step that fails undoes nothing but itself; steps are run in the
    event loop, one thread commits, and each caller is answered after that. `read` runs a step in a
    thread with a connection of its own, and sees everything that was committed before.
    """

    def __init__(self, path: Path, on_commit: OnCommit) -> None:
        """`on_commit` is called in the event loop."""
        self._path = path
        self._on_commit = on_commit
        #: What waits for the next transaction, and whether any of it is to be committed soon.
        self._gathered: list[_Write] = []
        self._soon = False
        self._turn: asyncio.Handle | None = None
        self._holding: asyncio.TimerHandle | None = None
        #: The transaction that is being committed.
        self._open: _Transaction | None = None
        self._commits: queue.SimpleQueue[_Transaction | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._settled = asyncio.Event()
        self._local = threading.local()
        self._readers: ThreadPoolExecutor | None = None
        self._reading: list[sqlite3.Connection] = []
        self._writing: sqlite3.Connection | None = None
        self._hurried = False
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
            self._writing.execute("PRAGMA busy_timeout = 0")  # _transact() waits
            self._last_seq = self._writing.execute(sql("last_event")).fetchone()["seq"]
            self._looking = connect(self._path)
            self._looking.execute("PRAGMA query_only = ON")
            self._looking.execute("PRAGMA busy_timeout = 0")  # look() reads elsewhere instead
            self._reading.append(self._looking)
        except sqlite3.Error as error:
            raise StoreUnusable(path=self._path, problem=f"{error}.") from error
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._thread = threading.Thread(
            target=self._commit_all, args=(self._writing,), name="writer", daemon=True
        )
        self._thread.start()

    def hurry(self) -> None:
        """Wait for nobody's lock any more: what cannot be written at once is refused."""
        self._hurried = True

    async def close(self) -> None:
        """Commit what has gathered, and disconnect."""
        if self._thread is not None and self._readers is not None:
            self.hurry()
            while self._gathered or self._open:
                self._settled.clear()
                self._wake()
                await self._settled.wait()
            self._commits.put(None)
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
        A step may run twice: where another one fails, all of its transaction are taken again.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._gathered.append(_Write(step, future, time.monotonic(), then))
        if soon:
            self._wake()
        elif self._holding is None:
            self._holding = self._loop.call_later(HOLD, self._wake)
        return future

    def _wake(self) -> None:
        """Begin the next transaction with all that comes in this turn of the loop."""
        self._soon = True
        if self._turn is None and self._open is None:
            self._turn = self._loop.call_soon(self._transact)

    async def read(self, step: Step[T]) -> T:
        """Run a step that only reads; all its statements see the same state."""
        return await self._loop.run_in_executor(self._readers, self._read, step)

    async def look(self, step: Step[T]) -> T:
        """Likewise, for a step that reads a few rows by their keys: right here, which takes less
        time than to have a thread do it. Where that would have to wait it is a `read`."""
        try:
            return self._read_with(self._looking, step)
        except sqlite3.Error as error:
            if not _is_busy(error):
                raise self._seen(error) from error
        return await self.read(step)

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
            return self._read_with(self._reader(), step)
        except sqlite3.Error as error:
            raise self._seen(error) from error

    @staticmethod
    def _read_with(connection: sqlite3.Connection, step: Step[T]) -> T:
        connection.execute("BEGIN")
        try:
            return step(connection)
        finally:
            connection.execute("ROLLBACK")

    def _seen(self, error: sqlite3.Error) -> Exception:
        """What an error of SQLite means to who reads."""
        if error_code(error) in DAMAGED:
            give_up(unusable(self._path, error))
        return _translate(error)

    # --- a transaction

    def _transact(self) -> None:
        """Take what has gathered into a transaction, and have it committed.

        The steps run here, as they take microseconds: in a thread of their own they and the event
        loop spend as much time on waiting for each other. What may take long is the commit.
        """
        self._turn = None
        connection, group = self._writing, self._gathered[:GROUP_LIMIT]
        if self._open is not None or connection is None or not group:
            return
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            transaction = self._take_group(connection, group)
        except Exception as error:
            if _is_fatal(error):
                give_up(unusable(self._path, error))
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if _is_busy(error) and not self._hurried:
                # Somebody else locks the database.
                now = time.monotonic()
                group = [write for write in group if now > write.since + BUSY_TIMEOUT]
                if not group:
                    self._turn = self._loop.call_later(BUSY_LOOK, self._transact)
                    return
            transaction = _Transaction([(write.future, None, error) for write in group], [], [])
            self._gathered = self._gathered[len(group) :]
            self._finish(transaction)
            return
        self._gathered = self._gathered[len(group) :]
        self._soon = bool(self._gathered)
        self._open = transaction
        self._commits.put(transaction)

    def _take_group(
        self, connection: sqlite3.Connection, group: Sequence[_Write]
    ) -> "_Transaction":
        """All steps of a transaction, as if none could fail: to be ready to undo each takes as long
        as the steps. If one does fail, all are undone, and taken again one by one."""
        try:
            outcomes: list[_Outcome] = [(w.future, w.step(connection), None) for w in group]
        except Exception as error:
            if _is_fatal(error) or not connection.in_transaction:
                raise
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [(write.future, *self._take(connection, write.step)) for write in group]
        followed = []
        for name, step in {n: s for write in group for n, s in write.then.items()}.items():
            _, failure = self._take(connection, step)
            if failure is None:
                followed.append(name)
            else:
                log.error("what was to follow for %s has failed", name, exc_info=failure)
        changes = connection.execute(sql("changes_since"), {"after": self._last_seq}).fetchall()
        return _Transaction(outcomes, changes, followed)

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
            return None, error
        connection.execute("RELEASE step")
        return value, None

    def _commit_all(self, connection: sqlite3.Connection) -> None:
        """The life of the writer: commit what it is given."""
        while (transaction := self._commits.get()) is not None:
            try:
                connection.execute("COMMIT")
            except Exception as error:
                if _is_fatal(error):
                    give_up(unusable(self._path, error))
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                transaction = transaction.failed(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._finish, transaction)

    def _finish(self, transaction: "_Transaction") -> None:
        """It is durable, or has failed: go on with what came meanwhile, answer, and tell."""
        self._open = None
        if self._gathered and self._soon:
            self._wake()
        self._settled.set()
        if transaction.changes:
            self._last_seq = transaction.changes[-1]["seq"]
        for future, value, error in transaction.outcomes:
            if future.done():  # its caller has gone
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(_translate(error))
        if transaction.changes:
            self._on_commit(transaction.changes, transaction.followed)


class _Transaction(Struct, frozen=True):
    """What the steps of a transaction came to, what it has changed, and what followed."""

    outcomes: list[_Outcome]
    changes: list[Row]
    followed: list[str]

    def failed(self, error: Exception) -> "_Transaction":
        """The same, of which nothing was committed."""
        return _Transaction([(future, None, error) for future, *_ in self.outcomes], [], [])
