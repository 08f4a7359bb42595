"""Somebody else locks the database, or it fails: writers wait, then are told, nothing is lost."""

import asyncio
import contextlib
import resource
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_server.store import database as module
from orchestrator_shared.errors import Unavailable
from support.store import add_job, open_database


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """A lock as a person with a database shell, or a backup, holds it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def _count(connection: sqlite3.Connection) -> int:
    count: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
    return count


async def test_writers_wait_while_the_database_is_locked(tmp_path: Path) -> None:
    """Readers do not, and once the lock is gone all that waited is written."""
    path = tmp_path / "db.sqlite"
    async with open_database(path) as database:
        with _lock(path):
            writes = [database.write(add_job) for _ in range(20)]
            assert await database.read(_count) == 0
            assert not any(write.done() for write in writes)
        await asyncio.gather(*writes)
        assert await database.read(_count) == 20


async def test_whoever_waited_for_too_long_is_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is written later, what was answered before stays, and it works again."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.05)
    path = tmp_path / "db.sqlite"
    async with open_database(path) as database:
        await database.write(add_job)
        with _lock(path):
            refused = await asyncio.gather(
                *(database.write(add_job) for _ in range(5)), return_exceptions=True
            )
        assert [type(error) for error in refused] == [Unavailable] * 5
        assert await database.read(_count) == 1
        await database.write(add_job)
        assert await database.read(_count) == 2
        assert database.problem is None


async def test_a_locked_database_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A program that stops does not wait for somebody else's lock; what waited is refused."""
    path = tmp_path / "db.sqlite"
    async with open_database(path) as database:
        with _lock(path):
            write = database.write(add_job)
            await database.close()
            with pytest.raises(Unavailable):
                await write
    async with open_database(path) as database:
        assert await database.read(_count) == 0


async def test_readers_come_back_once_there_are_open_files_again(tmp_path: Path) -> None:
    """A reading thread that could not connect when it was first needed does so later."""
    async with open_database(tmp_path / "db.sqlite") as database:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(sqlite3.OperationalError):
                await database.read(_count)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await database.read(_count) == 0


FAIL = """
import asyncio, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.store import add_job, open_database

async def main():
    async with open_database(Path(sys.argv[1])) as database:
        await database.write(add_job)
        print("answered", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        await asyncio.gather(*(database.write(add_job) for _ in range(5000)))
        print("not reached", flush=True)

asyncio.run(main())
"""


async def test_a_disk_that_fails_ends_the_process(tmp_path: Path) -> None:
    """Exit code 3 and one line; what was answered before is there at the next start."""
    path = tmp_path / "db.sqlite"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FAIL, str(path), str(Path(__file__).parents[1]),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()

    assert process.returncode == 3
    assert out == b"answered\n"
    assert err.decode().count("\n") == 1
    assert str(path) in err.decode()
    async with open_database(path) as database:
        assert await database.read(_count) == 1
