"""One writer commits in groups; each step stands for itself, and is answered once it is durable."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Collection
from functools import partial
from pathlib import Path

import pytest

from orchestrator_server.store import database as module
from orchestrator_server.store.database import Database, Row
from support.store import add_job, of_user, open_database


class Commits:
    """What on_commit was told: the changes of each transaction."""

    def __init__(self) -> None:
        self.groups: list[list[Row]] = []
        self.followed: list[str] = []

    def __call__(self, changes: list[Row], followed: Collection[str]) -> None:
        self.groups.append(changes)
        self.followed += followed


@pytest.fixture
def commits() -> Commits:
    """Who listens to the database."""
    return Commits()


@pytest.fixture
async def database(tmp_path: Path, commits: Commits) -> AsyncIterator[Database]:
    """A database as the server opens it."""
    async with open_database(tmp_path / "db.sqlite", commits) as opened:
        yield opened


@contextlib.asynccontextmanager
async def _held(database: Database) -> AsyncIterator[None]:
    """A transaction is being committed: what is written meanwhile is the next group."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    connection = database._writing
    assert connection is not None

    def hold(statement: str) -> None:
        if statement == "COMMIT":
            loop.call_soon_threadsafe(begun.set)
            go_on.wait()

    connection.set_trace_callback(hold)
    held = database.write(lambda _: None)
    await begun.wait()
    try:
        yield
    finally:
        go_on.set()
        await held


def _users(connection: sqlite3.Connection) -> list[int]:
    return [row["user_id"] for row in connection.execute("SELECT user_id FROM jobs ORDER BY id")]


def _elsewhere(tmp_path: Path) -> list[int]:
    """What a process that has nothing to do with the server sees."""
    with contextlib.closing(sqlite3.connect(tmp_path / "db.sqlite")) as other:
        other.row_factory = sqlite3.Row
        return _users(other)


async def test_a_step_that_raises_undoes_itself_alone(
    database: Database, commits: Commits, tmp_path: Path
) -> None:
    """Its neighbours in the same transaction are kept, and its caller gets what it raised."""

    def fail(connection: sqlite3.Connection) -> None:
        add_job(connection, 2)
        raise LookupError("no")

    async with _held(database):
        first = database.write(of_user(1))
        failing = database.write(fail)
        refused = database.write(lambda c: c.execute("INSERT INTO transitions VALUES (NULL, 'x')"))
        last = database.write(of_user(3))

    assert (await first, await last) == (1, 2)
    with pytest.raises(LookupError, match="no"):
        await failing
    with pytest.raises(sqlite3.IntegrityError):
        await refused
    assert _elsewhere(tmp_path) == [1, 3]
    assert [len(group) for group in commits.groups] == [2]


def _note(order: list[int], n: int, _connection: sqlite3.Connection) -> None:
    order.append(n)


async def test_steps_run_in_the_order_of_the_calls(database: Database) -> None:
    """Whether their callers wait for them or not, and across groups."""
    order: list[int] = []
    writes = [database.write(partial(_note, order, n)) for n in range(1000)]
    await asyncio.gather(*writes)
    assert order == list(range(1000))


async def test_what_nobody_waits_for_goes_along_with_the_next(
    database: Database, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the calls, and in one commit."""
    monkeypatch.setattr(module, "HOLD", 3600.0)
    held = [database.write(of_user(n), soon=False) for n in (1, 2)]
    await database.write(of_user(3))
    assert [await write for write in held] == [1, 2]
    assert await database.read(_users) == [1, 2, 3]
    assert len(commits.groups) == 1


async def test_what_nobody_waits_for_is_committed_in_time(database: Database) -> None:
    """Although nothing else comes; and at the end."""
    assert await database.write(of_user(1), soon=False) == 1


async def test_closing_commits_what_was_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that could have waited."""
    monkeypatch.setattr(module, "HOLD", 3600.0)
    async with open_database(tmp_path / "db.sqlite") as database:
        write = database.write(of_user(1), soon=False)
    assert await write == 1
    assert len(_elsewhere(tmp_path)) == 1


async def test_results_come_only_after_the_commit(database: Database, tmp_path: Path) -> None:
    """While the transaction is open nobody is answered, and nobody sees it."""
    async with _held(database):
        write = database.write(of_user(7))
        assert _elsewhere(tmp_path) == []
        assert not write.done()
    await write
    assert _elsewhere(tmp_path) == [7]


async def test_what_follows_is_done_once_in_the_same_transaction(
    database: Database, commits: Commits
) -> None:
    """After all steps, whoever of them named it; whoever listens is told that it was."""
    await asyncio.gather(
        *(database.write(of_user(n), then={"last": of_user(100)}) for n in (1, 2, 3))
    )

    assert [[row["user_id"] for row in group] for group in commits.groups] == [[1, 2, 3, 100]]
    assert commits.followed == ["last"]


async def test_what_follows_and_fails_undoes_nothing_else(
    database: Database, commits: Commits
) -> None:
    """And nobody is told that it was done."""

    def fail(connection: sqlite3.Connection) -> None:
        add_job(connection, 7)
        raise ValueError

    await database.write(of_user(1), then={"fails": fail, "works": of_user(100)})

    assert [[row["user_id"] for row in group] for group in commits.groups] == [[1, 100]]
    assert commits.followed == ["works"]


async def test_callers_are_told_of_commits_after_them(tmp_path: Path, commits: Commits) -> None:
    """Each change once, in order, when any other connection can see it."""
    seen: list[list[int]] = []

    def look(changes: list[Row], followed: Collection[str]) -> None:
        commits(changes, followed)
        seen.append(_elsewhere(tmp_path))

    async with open_database(tmp_path / "db.sqlite", look) as database:
        await asyncio.gather(*(database.write(of_user(n)) for n in range(50)))

    changes = [change for group in commits.groups for change in group]
    assert [change["seq"] for change in changes] == list(range(1, 51))
    total = 0
    for group, users in zip(commits.groups, seen, strict=True):
        total += len(group)
        assert len(users) >= total


async def test_changes_from_before_the_start_are_not_told_again(
    tmp_path: Path, commits: Commits
) -> None:
    """A restart is no change."""
    async with open_database(tmp_path / "db.sqlite") as database:
        await database.write(of_user(1))
    async with open_database(tmp_path / "db.sqlite", commits) as database:
        await database.write(of_user(2))
    assert [[change["user_id"] for change in group] for group in commits.groups] == [[2]]


async def test_a_reader_sees_what_was_committed_before(database: Database) -> None:
    """Whichever of the reading threads takes it."""
    for n in range(1, 30):
        await database.write(of_user(n))
        found = await asyncio.gather(*(database.read(_users) for _ in range(4)))
        assert found == [list(range(1, n + 1))] * 4


async def test_all_statements_of_a_read_see_the_same(database: Database) -> None:
    """A commit between two of them is not seen."""
    looked, go_on = threading.Event(), threading.Event()

    def read(connection: sqlite3.Connection) -> tuple[list[int], list[int]]:
        first = _users(connection)
        looked.set()
        go_on.wait()
        return first, _users(connection)

    reading = asyncio.create_task(database.read(read))
    await asyncio.to_thread(looked.wait)
    await database.write(of_user(1))
    go_on.set()

    assert await reading == ([], [])
    assert await database.read(_users) == [1]


async def test_a_read_cannot_write(database: Database) -> None:
    """Reading never writes, even by mistake."""
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await database.read(of_user(1))
    assert await database.read(_users) == []


async def test_many_writers_share_transactions(database: Database, commits: Commits) -> None:
    """200 at once need far fewer than 200 commits, each of which waits for the disk."""
    ids = await asyncio.gather(*(database.write(of_user(1)) for _ in range(200)))

    assert sorted(ids) == list(range(1, 201))
    assert sum(len(group) for group in commits.groups) == 200
    assert len(commits.groups) < 50


async def test_a_caller_that_has_gone_holds_up_nobody(database: Database) -> None:
    """Its step is done all the same: it was handed over."""
    async with _held(database):
        gone = database.write(of_user(1))
        gone.cancel()
        stays = database.write(of_user(2))
    await stays
    assert await database.read(_users) == [1, 2]


async def test_closing_commits_what_was_handed_over(tmp_path: Path) -> None:
    """And answers it."""
    async with open_database(tmp_path / "db.sqlite") as database:
        writes = [database.write(of_user(1)) for _ in range(300)]
    assert len(_elsewhere(tmp_path)) == 300
    assert len(await asyncio.gather(*writes)) == 300


async def test_every_commit_is_durable_when_it_is_answered(database: Database) -> None:
    """WAL with an fsync at each commit (PRAGMA synchronous = FULL)."""
    mode, sync, keys = await database.write(
        lambda c: [
            c.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    assert (mode, sync, keys) == ("wal", 2, 1)
