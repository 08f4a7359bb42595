"""A database without a server around it."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path

from orchestrator_server.queue.dispatch import Limits, Offer, dispatch
from orchestrator_server.store.connection import connect, migrate
from orchestrator_server.store.database import Database, OnCommit, Row
from orchestrator_server.store.job import Job
from orchestrator_server.store.queries import sql
from orchestrator_shared.status import Status


def nobody(_changes: list[Row], _followed: Collection[str]) -> None:
    """Who wants to know of no change."""


@contextlib.contextmanager
def bare_store(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database with the present schema; commits nothing by itself."""
    with contextlib.closing(connect(path)) as connection:
        migrate(connection, path)
        # What the tests write need not outlive a power cut.
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


@contextlib.asynccontextmanager
async def open_database(path: Path, on_commit: OnCommit = nobody) -> AsyncIterator[Database]:
    """A database as the server opens it."""
    database = Database(path, on_commit)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def add_job(
    connection: sqlite3.Connection, user_id: int = 1, service: str = "example", now: float = 1.0
) -> int:
    """A Queued job, as an upload makes it."""
    id = connection.execute(
        sql("insert_job"),
        {
            "user_id": user_id,
            "service": service,
            "ref": None,
            "folder": f"folder-{user_id}",
            "now": now,
            "input_bytes": 1,
            "idempotency_key": None,
            "input_digest": None,
        },
    ).lastrowid
    assert id is not None
    return id


def of_user(user_id: int) -> Callable[[sqlite3.Connection], int]:
    """The step that adds a job of this user."""
    return lambda connection: add_job(connection, user_id)


def set_status(connection: sqlite3.Connection, id: int, status: str, **values: object) -> None:
    """Change a job as somebody with a database shell would; the triggers have the last word."""
    more = "".join(f", {name} = :{name}" for name in values)
    connection.execute(
        f"UPDATE jobs SET status = :status, version = version + 1{more} WHERE id = :id",  # noqa: S608
        {"id": id, "status": status, **values},
    )


def go(
    connection: sqlite3.Connection,
    slots: dict[str, int],
    limits: Limits,
    *,
    service: str = "example",
    others: int = 0,
    away: frozenset[str] = frozenset(),
) -> list[Job]:
    """Dispatch once to the clients of these names and slots that are not away."""
    offers = [
        Offer(name, "start", f"http://{name}", count, others, 0.0)
        for name, count in slots.items()
        if name not in away
    ]
    reachable = frozenset(slots) - away
    return dispatch(connection, service, limits, offers, reachable, 2.0)


def end(connection: sqlite3.Connection, id: int) -> None:
    """A job is over."""
    set_status(connection, id, Status.COMPLETED)
