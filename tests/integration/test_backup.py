"""A backup: database and files that belong together, made while the server goes on."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_server.app import create_app
from orchestrator_server.backup import BackupFailed, back_up, look_through
from orchestrator_server.config import Config
from orchestrator_server.identity import PairBroken, take_identity
from orchestrator_server.keys import CONFIG
from orchestrator_server.store.connection import StoreUnusable
from orchestrator_server.store.copies import copy_database
from support.commands import command
from support.limits import files_no_larger_than
from support.portal import Portal
from support.processes import Program
from support.servers import OwnServer, server_of
from support.system import running_system, server_config

#: Files that do not lie in the database, and some that do.
LARGE: dict[str, bytes | str] = {"run.sh": "true", "in": b"x" * 100_000}
SMALL: dict[str, bytes | str] = {"run.sh": "true"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[OwnServer]:
    """A server without clients that has a job with large files, and one with small ones."""
    async with server_of(tmp_path, ["http://127.0.0.1:9"]) as running:
        await running.portal.upload(LARGE)
        await running.portal.upload(SMALL)
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the backup is made."""
    return tmp_path / "backup"


def _back_up(server: OwnServer, target: Path) -> str:
    return back_up(server.app[CONFIG], target)


def _rows(database: Path, table: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608


def _files(jobs: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(jobs)): path.read_bytes() for path in jobs.rglob("*") if path.is_file()
    }


async def test_it_has_all_records_and_all_files(tmp_path: Path, target: Path) -> None:
    """Inputs and results, those in the database and those beside it."""
    noise = "head -c 100000 /dev/urandom > noise"
    async with running_system(tmp_path) as system:
        for files in ({**LARGE, "run.sh": noise}, SMALL):
            assert (await system.portal.ended(await system.portal.upload(files)))["exit_code"] == 0
        config = system.server[CONFIG]

        said = back_up(config, target)

        assert said.startswith("2 jobs with 3 files ")
        for table in ("jobs", "inputs", "results", "history", "meta"):
            found = _rows(target / "orch-server.sqlite", table)
            assert found == _rows(config.db_path, table)
            assert found
        kept = _files(config.data_path / "jobs")
        assert {Path(name).name for name in kept} == {"run.sh", "in", "result-1.zip"}
        assert _files(target / "jobs") == kept
        marker = json.loads((target / "backup.json").read_text())
        assert (marker["jobs"], marker["files"]) == (2, 3)


async def test_a_server_that_has_stopped_is_backed_up_too(tmp_path: Path, target: Path) -> None:
    """And nothing of it changes by that."""
    async with server_of(tmp_path, ["http://127.0.0.1:9"]) as server:
        await server.portal.upload(LARGE)
    config = server.app[CONFIG]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    back_up(config, target)

    assert look_through(target / "orch-server.sqlite", target / "jobs") == []
    assert {p: p.read_bytes() for p in before} == before
    assert len(_rows(target / "orch-server.sqlite", "jobs")) == 1


async def test_uploads_go_on_meanwhile(server: OwnServer, target: Path) -> None:
    """Whatever moment it has caught, each file that its database names is there."""
    config = server.app[CONFIG]
    backing_up = [asyncio.to_thread(back_up, config, target / str(n)) for n in range(4)]
    uploading = [server.portal.upload(LARGE) for _ in range(40)]

    await asyncio.gather(*(x for pair in zip(backing_up, uploading, strict=False) for x in pair),
                         *uploading[4:])  # fmt: skip

    for made in target.iterdir():
        assert look_through(made / "orch-server.sqlite", made / "jobs") == []
        assert (made / "backup.json").exists()


async def test_nobody_waits_for_it_nor_it_for_anybody(server: OwnServer, target: Path) -> None:
    """It gets what was committed before, while somebody writes, and he goes on writing."""
    config = server.app[CONFIG]
    with contextlib.closing(sqlite3.connect(config.db_path, isolation_level=None)) as writing:
        writing.execute("BEGIN IMMEDIATE")
        writing.execute("UPDATE jobs SET kill_requested = 1")

        _back_up(server, target)

        writing.execute("COMMIT")
    assert [row[0] for row in _rows(target / "orch-server.sqlite", "jobs")] == [1, 2]
    with contextlib.closing(sqlite3.connect(target / "orch-server.sqlite")) as copied:
        assert copied.execute("SELECT sum(kill_requested) FROM jobs").fetchone() == (0,)


async def test_files_on_the_same_disk_take_no_room(server: OwnServer, target: Path) -> None:
    """They get a second name."""
    _back_up(server, target)

    (there,) = (target / "jobs").rglob("in")
    (here,) = server.app[CONFIG].data_path.rglob("in")
    assert here.samefile(there)


async def test_files_are_copied_to_another_disk(server: OwnServer, target: Path) -> None:
    """Where a second name cannot be."""
    other_disk = Path("/dev/shm")  # noqa: S108
    target = other_disk / f"{target.parent.name}-{os.getpid()}"
    if other_disk.stat().st_dev == server.app[CONFIG].data_path.stat().st_dev:
        pytest.skip("there is one disk only")
    try:
        _back_up(server, target)

        (there,) = (target / "jobs").rglob("in")
        assert there.read_bytes() == LARGE["in"]
        assert not (target / "copying").exists()
    finally:
        shutil.rmtree(target, ignore_errors=True)


async def test_files_that_the_cleaner_takes_meanwhile_are_looked_for_no_more(
    server: OwnServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their job is Cleaned in the database of the backup, then."""
    config, copy, copies = server.app[CONFIG], copy_database, list[Path]()

    def copy_then_clean(source: sqlite3.Connection, to: Path) -> None:
        copy(source, to)
        if not copies:
            with contextlib.closing(sqlite3.connect(config.db_path)) as cleaning:
                for status in ("Killed", "Cleaned"):
                    cleaning.execute(
                        "UPDATE jobs SET status = ?, version = version + 1 WHERE id = 1", [status]
                    )
                cleaning.execute("DELETE FROM inputs WHERE job = 1")
                cleaning.commit()
            shutil.rmtree(config.data_path / "jobs")
        copies.append(to)

    monkeypatch.setattr("orchestrator_server.backup.copy_database", copy_then_clean)

    assert _back_up(server, target).startswith("2 jobs with 0 files ")

    assert len(copies) == 2
    assert [row[4] for row in _rows(target / "orch-server.sqlite", "jobs")] == ["Cleaned", "Queued"]


@pytest.mark.parametrize("harm", ["missing", "cut short"])
async def test_a_file_that_is_not_whole_is_named(
    server: OwnServer, target: Path, harm: str
) -> None:
    """No backup is made that could not be relied on; without that job there is one."""
    (file,) = server.app[CONFIG].data_path.rglob("in")
    file.unlink() if harm == "missing" else file.write_bytes(b"x")

    with pytest.raises(BackupFailed) as error:
        _back_up(server, target)

    assert error.value.exit_code == 1
    assert f"{file} is missing or cut short" in str(error.value)
    assert "DELETE /jobs/1" in str(error.value)
    assert list(target.iterdir()) == []
    assert (await server.portal.request("DELETE", "/jobs/1")).status == 200
    _back_up(server, target)


@pytest.mark.parametrize("what", ["a file", "a folder with something", "a backup"])
async def test_only_a_new_folder_is_written_to(server: OwnServer, target: Path, what: str) -> None:
    """What is there stays as it is."""
    if what == "a file":
        target.write_text("mine")
    elif what == "a backup":
        _back_up(server, target)
    else:
        target.mkdir()
        (target / ".hidden").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in (target, *target.rglob("*"))}

    with pytest.raises(BackupFailed):
        _back_up(server, target)

    assert {path: path.stat().st_mtime_ns for path in (target, *target.rglob("*"))} == before


def test_without_a_server_there_is_nothing_to_back_up(tmp_path: Path, target: Path) -> None:
    """And nothing is made by trying."""
    with pytest.raises(BackupFailed, match="no server was ever started"):
        back_up(server_config(tmp_path / "server"), target)
    assert list(tmp_path.iterdir()) == []


def test_two_that_do_not_belong_together_are_no_backup(tmp_path: Path, target: Path) -> None:
    """As at the start of a server."""
    one, other = server_config(tmp_path / "one"), server_config(tmp_path / "other")
    for config in (one, other):
        take_identity(config).release()
    with pytest.raises(PairBroken):
        back_up(server_config(one.data_path, db_path=other.db_path), target)
    assert not target.exists()


def _damage(database: Path, start: int) -> None:
    content = bytearray(database.read_bytes())
    content[start : start + 4096] = b"\xff" * 4096
    database.write_bytes(content)


@pytest.fixture
async def stopped(tmp_path: Path) -> Config:
    """A server with jobs, which has stopped."""
    async with server_of(tmp_path, ["http://127.0.0.1:9"]) as server:
        for _ in range(50):
            await server.portal.upload(SMALL)
    return server.app[CONFIG]


@pytest.mark.parametrize("page", [0, 10, 20])
async def test_a_damaged_database_is_no_backup(stopped: Config, target: Path, page: int) -> None:
    """Whatever part of it: exit code 3, as the server would end with, and the way out."""
    _damage(stopped.db_path, page * 4096)

    with pytest.raises(StoreUnusable, match="restore a backup") as error:
        back_up(stopped, target)

    assert error.value.exit_code == 3
    assert str(stopped.db_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not target.exists() or list(target.iterdir()) == []


def test_a_full_disk_is_a_line(stopped: Config, target: Path) -> None:
    """And leaves nothing behind."""
    with files_no_larger_than(50_000), pytest.raises(BackupFailed) as error:
        back_up(stopped, target)

    assert error.value.exit_code == 1
    assert list(target.iterdir()) == []


async def test_the_command_makes_it_for_its_owner_alone(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Whatever the umask; it says in one line what it has made, or why it has not."""
    server = Program("orch-server", tmp_path / "server", {"SERVICE_EXAMPLE_URL": "http://[::1]:9"})
    try:
        await server.start()
        await Portal(server.url, session).upload(LARGE)

        done = await command(server, "backup", "a/b")

        target = server.folder / "a" / "b"
        assert done.out == f"1 jobs with 2 files are in {target}\n"
        assert (done.code, done.errors) == (0, "")
        for path in (target, *target.iterdir()):
            assert path.stat().st_mode & 0o077 == 0, path
        again = await command(server, "backup", target)
        assert again.code == 1
        assert f"{target} is not empty" in again.refusal
    finally:
        await server.close()


def test_a_backup_is_no_server(stopped: Config, target: Path) -> None:
    """Started on it one would change it, and give its numbers a second time."""
    back_up(stopped, target)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}

    with pytest.raises(PairBroken):
        create_app(server_config(target, db_path=target / "orch-server.sqlite"))

    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
