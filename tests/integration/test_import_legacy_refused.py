"""An import that cannot be, or was cut off, leaves everything as it was; the original always."""

import contextlib
import fcntl
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server import import_original as importing
from orchestrator_server import original_server
from orchestrator_server.app import create_app
from orchestrator_server.config import Config
from orchestrator_server.identity import take_identity
from orchestrator_server.original_server import ImportFailed
from orchestrator_server.store import connection as connection_module
from orchestrator_server.store.queries import migrations
from orchestrator_shared.errors import SettingError, StartError
from support.limits import run_as_owner
from support.original_folder import (
    AWAY,
    OriginalFolder,
    config_of,
    count_of,
    take_over,
    with_large_jobs,
)
from support.servers import server_of, services
from support.system import server_config

#: As a server of the original has its database open.
_HOLDS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("open", flush=True)
sys.stdin.read()
"""
#: Ends as a kill would, with what it has not closed yet.
_LEAVES = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
os._exit(0)
"""
#: One that says why it was refused.
_IMPORTS = """
import os, sys
from pathlib import Path
from orchestrator_server import import_original as importing
from orchestrator_server.config import Config
os.environ.update(DB_PATH=sys.argv[1], DATA_PATH=sys.argv[2])
os.environ.update(SERVICE_EXAMPLE_URL="http://127.0.0.1:9")
try:
    importing.import_original(Config.from_env(), Path(sys.argv[3]), Path(sys.argv[4]), [])
except importing.ImportFailed as error:
    print(error)
"""


@pytest.fixture
def original(tmp_path: Path) -> OriginalFolder:
    """What was recorded, which has ten jobs, and two more that are large."""
    return with_large_jobs(tmp_path / "original")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Ours, with one client for the service of these jobs. Nothing is there yet."""
    return config_of(tmp_path)


def _ours(config: Config) -> dict[str, bytes | None]:
    """All that is there of ours, with its content; locks have none that counts."""
    below = config.data_path.rglob("*") if config.data_path.exists() else ()
    beside = config.db_path.parent.glob(config.db_path.name + "*")
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in (*below, *beside)
        if not path.name.endswith(("lock", "-shm", "-wal"))
    }


def _refused(
    original: OriginalFolder,
    config: Config,
    *clients: str,
    code: int = 1,
    error: type[StartError] = ImportFailed,
) -> str:
    """The one line with which it is refused; nothing was written, here or there."""
    ours, theirs = _ours(config), original.everything()
    with pytest.raises(error) as refusal:
        take_over(original, config, *clients)
    assert refusal.value.exit_code == code
    assert _ours(config) == ours
    assert original.everything() == theirs
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@contextlib.contextmanager
def _held(database: Path, *statements: str) -> Iterator[int]:
    """The id of a process that has a database open, after these statements."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, database, *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"open\n"
            yield process.pid
        finally:
            process.stdin.close()


# --- the original


def test_the_original_stays_as_it_is(original: OriginalFolder, config: Config) -> None:
    """Not one byte of it changes, no time, no name."""
    before = original.everything()
    take_over(original, config)
    take_over(original, config)
    assert original.everything() == before


@pytest.mark.parametrize("left", ["-wal", "-journal"])
def test_what_a_kill_left_beside_its_database_counts(
    original: OriginalFolder, config: Config, left: str
) -> None:
    """As it would for the original itself; and that stays beside it."""
    if left == "-wal":
        statements = ["PRAGMA journal_mode = WAL", "UPDATE jobs SET user_id = 77 WHERE id = 1"]
    else:
        # So much that it comes to the file before it is committed.
        statements = [
            "PRAGMA cache_size = 1",
            "BEGIN",
            "UPDATE jobs SET user_id = 77",
            "CREATE TABLE more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            "WHERE i < 500) SELECT hex(randomblob(500)) FROM n",
        ]
    subprocess.run([sys.executable, "-c", _LEAVES, original.database, *statements], check=True)
    assert original.database.with_name(original.database.name + left).stat().st_size > 0
    before = original.everything()

    take_over(original, config)

    assert original.everything() == before
    with contextlib.closing(sqlite3.connect(config.db_path)) as connection:
        users = connection.execute("SELECT user_id FROM jobs WHERE id <= 2").fetchall()
    assert users == ([(77,), (7,)] if left == "-wal" else [(7,), (7,)])


@pytest.mark.parametrize("statements", [[], ["PRAGMA journal_mode = WAL", "SELECT * FROM jobs"]])
def test_nothing_is_taken_from_a_server_that_runs(
    original: OriginalFolder, config: Config, statements: list[str]
) -> None:
    """It is named, and where it is."""
    with _held(original.database, *statements) as pid:
        message = _refused(original, config)
    assert f"{original.database} is in use by process {pid} (" in message
    assert "stop the original server first" in message
    take_over(original, config)


@pytest.mark.parametrize(
    "statements",
    [
        ["BEGIN IMMEDIATE"],
        ["BEGIN", "SELECT * FROM jobs"],
        ["PRAGMA journal_mode = WAL", "SELECT * FROM jobs"],
    ],
    ids=["writes", "reads", "has a write-ahead log"],
)
def test_a_server_that_cannot_be_seen_has_a_lock(
    original: OriginalFolder,
    config: Config,
    statements: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container, or of another user."""
    monkeypatch.setattr(original_server, "_who_has_open", lambda _: None)
    with _held(original.database, *statements) as pid:
        assert f"in use by process {pid} (" in _refused(original, config)
    take_over(original, config)


def test_a_lock_that_names_no_process_counts(original: OriginalFolder, config: Config) -> None:
    """That of a process in another container has no number here."""
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(original.database, "r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
        assert "in use by a process elsewhere" in _refused(original, config)
    take_over(original, config)


def test_a_server_that_was_started_meanwhile_is_noticed(
    original: OriginalFolder, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of its jobs is ours."""
    copy_all = importing._copy_all
    with contextlib.ExitStack() as held:

        def copy_then_hold(*values: Any) -> None:
            copy_all(*values)
            held.enter_context(_held(original.database))

        monkeypatch.setattr(importing, "_copy_all", copy_then_hold)
        with pytest.raises(ImportFailed, match="in use by process"):
            take_over(original, config)
    assert count_of(config) == 0


@pytest.mark.parametrize("what", ["text", "another table", "other columns", "ours", "cut short"])
def test_what_is_no_database_of_the_original(
    original: OriginalFolder, config: Config, tmp_path: Path, what: str
) -> None:
    """It is said so, with the name of the file."""
    if what == "text":
        original.database.write_text("my notes\n" * 1000)
    elif what == "another table":
        original.execute("ALTER TABLE jobs RENAME TO holidays")
    elif what == "other columns":
        original.execute("ALTER TABLE jobs RENAME COLUMN loc TO location")
    elif what == "cut short":
        original.database.write_bytes(original.database.read_bytes()[:6000])
    else:
        ours = server_config(tmp_path / "other")
        take_identity(ours).release()
        original.database.write_bytes(ours.db_path.read_bytes())
    message = _refused(original, config)
    assert f"{original.database} is not a database of an original server" in message


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("status", "lost", "job 3 has the unknown state 'lost'"),
        ("user_id", -1, "job 3 is of user -1"),
        ("user_id", "me", "job 3 has no user_id that makes sense"),
        ("loc", b"x", "job 3 has no loc that makes sense"),
        ("id", -3, "job -3 is of user 8"),
    ],
)
def test_a_job_that_cannot_be_one_here_is_named(
    original: OriginalFolder, config: Config, column: str, value: object, named: str
) -> None:
    """None is taken over then: it is for the operator to decide."""
    original.execute(f"UPDATE jobs SET {column} = ? WHERE id = 3", value)  # noqa: S608
    assert named in _refused(original, config)


def test_files_that_are_elsewhere_are_missed(original: OriginalFolder, config: Config) -> None:
    """Before every job has failed for that."""
    original.data.rename(original.folder / "moved")
    assert "is not a folder" in _refused(original, config)
    original.data.mkdir()
    assert "has the folder of none of the jobs" in _refused(original, config)
    original.database.rename(original.folder / "moved.db")
    assert "No such file" in _refused(original, config)


def test_a_file_that_cannot_be_read_is_no_damage(original: OriginalFolder, config: Config) -> None:
    """The import stops, and names it."""
    file = original.files(1) / "output.zip"
    file.chmod(0)
    said = run_as_owner(
        _IMPORTS, config.db_path, config.data_path, original.database, original.data
    )
    assert said.strip().endswith(f"{file}: Permission denied")
    assert count_of(config) == 0


# --- ours


def test_nothing_is_taken_under_a_server(original: OriginalFolder, config: Config) -> None:
    """Of ours, which is told from the other one."""
    identity = take_identity(config)
    message = _refused(original, config, code=2, error=SettingError)
    identity.release()
    assert f"{config.db_path} is in use by an orch-server" in message


def test_no_server_starts_under_an_import(
    original: OriginalFolder, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told who has its database."""
    write = importing._write

    def try_to_start(*values: Any) -> None:
        with pytest.raises(SettingError, match="in use by an import of orch-server"):
            create_app(config)
        write(*values)

    monkeypatch.setattr(importing, "_write", try_to_start)
    take_over(original, config)
    take_identity(config).release()


async def test_an_id_that_is_another_jobs_stops_all(
    original: OriginalFolder, config: Config, tmp_path: Path
) -> None:
    """Before anything is written: one that was uploaded here, and one of another original."""
    async with server_of(tmp_path, [AWAY]) as server:
        assert await server.portal.upload("true") == 1
    assert "the id 1 is that of another job here" in _refused(original, config)
    assert count_of(config) == 1


def test_two_originals_do_not_become_one(
    original: OriginalFolder, config: Config, tmp_path: Path
) -> None:
    """Their ids are the same, and their jobs are not."""
    take_over(original, config)
    other = OriginalFolder(tmp_path / "other")
    other.execute("UPDATE jobs SET loc = loc || 'x' WHERE id = 7")
    assert "the id 7 is that of another job here" in _refused(other, config)


def test_a_database_of_an_earlier_version_takes_them(
    original: OriginalFolder, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is brought up to date, as at a start."""
    with monkeypatch.context() as earlier:
        earlier.setattr(connection_module, "migrations", lambda: migrations()[:1])
        take_identity(config).release()
    assert take_over(original, config).startswith("12 jobs are taken over")


@pytest.mark.parametrize(
    ("clients", "flags", "named"),
    [
        ({}, [], "'example' has no client in the settings"),
        ({"example": ["http://a", "http://b"]}, [], "'example' has several clients"),
        ({}, ["other=http://a"], "--client example=URL"),
        ({}, ["example"], "'example' is not SERVICE=URL"),
        ({}, ["=http://a"], "'=http://a' is not SERVICE=URL"),
        ({}, ["example=ftp://a"], "'example=ftp://a' is not SERVICE=URL"),
        ({}, ["example=http://a,http://b"], "is not SERVICE=URL, with one URL"),
        ({}, ["example=http://a", "Example=http://b"], "it names a service twice"),
    ],
)
def test_a_client_that_is_not_known_is_asked_for(
    original: OriginalFolder,
    config: Config,
    clients: dict[str, list[str]],
    flags: list[str],
    named: str,
) -> None:
    """With the service whose jobs it has, and what to say."""
    config = replace(config, services=services(clients))
    message = _refused(original, config, *flags, code=2, error=SettingError)
    assert message.startswith("--client: ")
    assert named in message
