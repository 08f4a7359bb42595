"""The migrations, whose sum is the schema, and what the server says of a newer one."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from orchestrator_server import app as server_app
from orchestrator_server.identity import take_identity
from orchestrator_server.store.database import StoreUnusable, connect, migrate
from orchestrator_server.store.queries import migrations
from support.store import bare_store
from support.system import server_config


def _schema(path: Path) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


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
    """Each is one transaction: half of one is never seen."""
    path = tmp_path / "db.sqlite"
    with bare_store(path):
        before = _schema(path)
    broken = [*migrations(), "CREATE TABLE added (x INTEGER); INSERT INTO nowhere VALUES (1);"]
    monkeypatch.setattr("orchestrator_server.store.database.migrations", lambda: broken)

    with contextlib.closing(connect(path)) as connection, pytest.raises(sqlite3.OperationalError):
        migrate(connection, path)

    assert _schema(path) == before


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
