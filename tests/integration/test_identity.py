"""One process, one database and one DATA_PATH that belong together, or none at all."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from orchestrator_server.app import create_app
from orchestrator_server.config import Config
from orchestrator_server.identity import PairBroken, take_identity
from orchestrator_server.store.connection import StoreUnusable
from orchestrator_shared.errors import SettingError, StartError
from support.servers import server_of
from support.system import server_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A server that has been started once, and has stopped."""
    made = server_config(tmp_path / "server")
    take_identity(made).release()
    return made


def _all(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _refused(config: Config, folder: Path, error: type[StartError]) -> str:
    """The one line with which the start is refused; nothing has been touched."""
    before = _all(folder)
    with pytest.raises(error) as refusal:
        create_app(config)
    assert refusal.value.exit_code == 2
    assert _all(folder) == before
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_pair_stays_a_pair(config: Config) -> None:
    """The same id at every start."""
    first = take_identity(config)
    first.release()
    second = take_identity(config)
    second.release()
    assert first.id == second.id
    assert (config.data_path / "id").read_text().strip() == first.id


@pytest.mark.parametrize("jobs", [False, True], ids=["no job yet", "with jobs"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
async def test_a_database_without_its_folder_is_refused(
    tmp_path: Path, jobs: bool, left: str
) -> None:
    """An empty one counts as missing: somebody forgot to mount the disk."""
    async with server_of(tmp_path, []) as server:
        if jobs:
            await server.portal.upload("true")
    config = server_config(tmp_path / "server")
    shutil.rmtree(config.data_path)
    if left == "an empty folder":
        config.data_path.mkdir()
    assert "missing" in _refused(config, tmp_path, PairBroken)


def test_a_folder_without_its_database_is_refused(config: Config, tmp_path: Path) -> None:
    """A new database would know nothing of its files."""
    config.db_path.unlink()
    assert "missing" in _refused(config, tmp_path, PairBroken)
    config.db_path.touch()
    assert "missing" in _refused(config, tmp_path, PairBroken)


def test_a_database_and_the_folder_of_another_are_refused(config: Config, tmp_path: Path) -> None:
    """Both ids are named."""
    other = server_config(tmp_path / "other")
    identity = take_identity(other)
    identity.release()
    crossed = server_config(other.data_path, db_path=config.db_path)
    message = _refused(crossed, tmp_path, PairBroken)
    assert identity.id in message
    assert (config.data_path / "id").read_text().strip() in message


def test_a_first_start_that_was_cut_short_is_begun_again(config: Config) -> None:
    """The database had its id, the folder not yet: nothing was ever accepted there."""
    with contextlib.closing(sqlite3.connect(config.db_path, isolation_level=None)) as database:
        database.execute("DELETE FROM meta WHERE key = 'paired'")
        (id,) = database.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
    (config.data_path / "id").unlink()
    identity = take_identity(config)
    identity.release()
    assert identity.id == id
    assert (config.data_path / "id").read_text().strip() == id


async def test_the_database_may_lie_in_its_folder(tmp_path: Path) -> None:
    """One disk, one folder to mount."""
    inside = tmp_path / "server" / "orch.sqlite"
    for _ in range(2):
        async with server_of(tmp_path, [], db_path=inside) as server:
            id = await server.portal.upload("true")
            assert (await server.portal.job(id))["status"] == "Queued"
    assert id == 2


@pytest.mark.parametrize("shared", ["database", "folder", "both"])
def test_a_second_server_is_kept_off(config: Config, tmp_path: Path, shared: str) -> None:
    """And told which kind of program has what it wanted."""
    running = take_identity(config)
    second = server_config(
        tmp_path / "own" if shared == "database" else config.data_path,
        db_path=tmp_path / "own.sqlite" if shared == "folder" else config.db_path,
    )
    message = _refused(second, tmp_path, SettingError)
    assert "in use by an orch-server" in message
    assert ("DATA_PATH" if shared == "folder" else "DB_PATH") in message
    running.release()
    if shared == "both":
        take_identity(second).release()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_foreign_database_is_refused(tmp_path: Path, journal: str) -> None:
    """It belongs to another program: not one byte of it changes, and nothing beside it."""
    config = server_config(tmp_path / "server")
    with contextlib.closing(sqlite3.connect(config.db_path)) as foreign:
        foreign.execute(f"PRAGMA journal_mode = {journal}")
        foreign.execute("CREATE TABLE holidays (day TEXT)")
        foreign.commit()
    assert "is not a database of orch-server" in _refused(config, tmp_path, SettingError)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """With exit code 3: it may be a database that was damaged."""
    config = server_config(tmp_path / "server")
    config.db_path.write_text("my notes, not a database\n" * 1000)
    before = _all(tmp_path)
    with pytest.raises(StoreUnusable) as error:
        create_app(config)
    assert error.value.exit_code == 3
    assert _all(tmp_path) == before


@pytest.mark.parametrize("name", ["jobs", "tmp", "orphans"])
def test_a_folder_in_which_others_have_files_is_refused(tmp_path: Path, name: str) -> None:
    """The server removes what lies in its tmp: never in /var, say, whose tmp is everybody's."""
    config = server_config(tmp_path / "server")
    (config.data_path / name).mkdir(parents=True)
    (config.data_path / name / "precious").write_text("x")
    assert f"'{name}'" in _refused(config, tmp_path, SettingError)


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    """It is the setting that is wrong."""
    config = server_config(tmp_path / "server")
    config.db_path.mkdir()
    assert "DB_PATH" in _refused(config, tmp_path, SettingError)


@pytest.mark.parametrize("setting", ["DB_PATH", "DATA_PATH"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, setting: str) -> None:
    """Here because a file stands where a folder is needed."""
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "below"
    paths = {"DB_PATH": tmp_path / "db.sqlite", "DATA_PATH": tmp_path / "server", setting: path}
    config = server_config(paths["DATA_PATH"], db_path=paths["DB_PATH"])
    with pytest.raises(SettingError, match=setting):
        create_app(config)


def test_a_start_that_fails_gives_its_locks_back(config: Config, tmp_path: Path) -> None:
    """Whoever tries again with the right settings is not held up."""
    with pytest.raises(PairBroken):
        create_app(server_config(tmp_path / "other", db_path=config.db_path))
    take_identity(config).release()
