"""The migrations, whose sum is the schema, and what the server says of a newer one."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from orchestrator_server import app as server_app
from orchestrator_server.identity import take_identity
from orchestrator_server.store.connection import StoreUnusable, connect, migrate
from orchestrator_server.store.queries import migrations
from support.limits import files_no_larger_than
from support.store import add_job, bare_store
from support.system import server_config


def _schema(path: Path) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


#: What a later version of the program might add.
LATER = "CREATE TABLE added (x INTEGER); CREATE INDEX by_x ON added (x);"


def _add_migrations(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """The program of a later version."""
    known = [*migrations(), *more]
    monkeypatch.setattr("orchestrator_server.store.connection.migrations", lambda: known)


def test_migrations_happen_once(tmp_path: Path) -> None:
    """A second start finds nothing to do, and changes nothing."""
    path = tmp_path / "db.sqlite"
    with bare_store(path) as store:
        first = _schema(path)
        migrate(store, path)
        assert store.execute("PRAGMA user_version").fetchone()[0] == len(migrations())
    assert _schema(path) == first


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are one transaction: half of them is never seen."""
    path = tmp_path / "db.sqlite"
    with bare_store(path):
        before = _schema(path)
    _add_migrations(monkeypatch, LATER, "INSERT INTO nowhere VALUES (1);")

    with contextlib.closing(connect(path)) as connection, pytest.raises(sqlite3.OperationalError):
        migrate(connection, path)

    assert _schema(path) == before


def test_the_database_is_copied_before_it_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that was committed, also what had not come to the file itself yet."""
    path = tmp_path / "db.sqlite"
    copy = path.with_name(f"db.sqlite.before-{len(migrations()) + 2}")
    with bare_store(path) as store:
        before = _schema(path)
        add_job(store)
        assert not list(tmp_path.glob("*.before-*"))
        _add_migrations(monkeypatch, LATER, "CREATE TABLE more (y INTEGER);")
        migrate(store, path)
        migrate(store, path)

    assert {"added", "more"} <= {name for name, _ in _schema(path)}
    assert list(tmp_path.glob("*.before-*")) == [copy]
    assert _schema(copy) == before
    assert copy.stat().st_mode & 0o077 == 0
    with contextlib.closing(sqlite3.connect(copy)) as copied:
        assert copied.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        assert copied.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_new_database_is_not_copied(tmp_path: Path) -> None:
    """There is nothing in it."""
    take_identity(server_config(tmp_path / "data")).release()
    assert not list(tmp_path.glob("*.before-*"))


async def test_the_copy_is_a_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the database it starts the version that wrote it."""
    config = server_config(tmp_path / "data")
    take_identity(config).release()
    with monkeypatch.context() as later:
        _add_migrations(later, LATER)
        take_identity(config).release()
    with pytest.raises(StoreUnusable):
        take_identity(config)

    (copy,) = tmp_path.glob("*.before-*")
    copy.replace(config.db_path)

    take_identity(config).release()


def test_without_room_for_the_copy_nothing_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With code 3, and a line that says why; nothing half is left."""
    config = server_config(tmp_path / "data")
    take_identity(config).release()
    before = _schema(config.db_path)
    _add_migrations(monkeypatch, LATER)

    with files_no_larger_than(50_000), pytest.raises(StoreUnusable, match="is copied to") as error:
        server_app.create_app(config)

    assert error.value.exit_code == 3
    assert _schema(config.db_path) == before
    assert not list(tmp_path.glob("*.before-*"))


def test_a_newer_schema_ends_the_start(tmp_path: Path) -> None:
    """With code 3 and both versions, and the database is left as it is."""
    config = server_config(tmp_path / "data")
    take_identity(config).release()
    known = len(migrations())
    with contextlib.closing(sqlite3.connect(config.db_path)) as newer:
        newer.execute(f"PRAGMA user_version = {known + 7}")
        newer.execute("CREATE TABLE of_the_future (x)")
    before = config.db_path.read_bytes()

    with pytest.raises(StoreUnusable, match=f"version {known + 7}.*up to {known}") as error:
        server_app.create_app(config)

    assert error.value.exit_code == 3
    assert config.db_path.read_bytes() == before


def test_every_migration_has_its_number() -> None:
    """They are applied in the order of their names, without a gap."""
    folder = Path(server_app.__file__).with_name("store") / "migrations"
    names = sorted(file.name for file in folder.glob("*.sql"))
    assert names == [f"{number:04}.sql" for number in range(1, len(names) + 1)]
