"""A backup becomes the server again: all it had is there, and a new generation begins."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from orchestrator_server import restore as restoring
from orchestrator_server.app import create_app
from orchestrator_server.backup import back_up
from orchestrator_server.config import Config
from orchestrator_server.identity import PairBroken, take_identity
from orchestrator_server.keys import CONFIG
from orchestrator_server.restore import AHEAD, RestoreFailed, restore
from orchestrator_server.store.connection import StoreUnusable
from orchestrator_server.store.copies import link_or_copy
from orchestrator_shared.errors import SettingError, StartError
from support.portal import Files
from support.servers import server_of
from support.system import running_system, server_config

#: Files that do not lie in the database.
LARGE: Files = {"run.sh": "true", "in": b"x" * 100_000}
#: A client that is not there.
AWAY = ["http://127.0.0.1:9"]


@pytest.fixture
async def config(tmp_path: Path) -> Config:
    """A server with two jobs, of which a backup was made, and then another; it has stopped."""
    async with server_of(tmp_path, AWAY) as server:
        await server.portal.upload(LARGE)
        await server.portal.upload("true")
        made: Config = server.app[CONFIG]
        back_up(made, tmp_path / "backup")
        await server.portal.upload(LARGE)
    return made


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Where the backup is."""
    return tmp_path / "backup"


def _move_away(config: Config) -> None:
    away = config.data_path.with_name("away")
    shutil.rmtree(away, ignore_errors=True)
    away.mkdir()
    config.data_path.rename(away / "data")
    for path in config.db_path.parent.glob(config.db_path.name + "*"):
        path.rename(away / path.name)


def _all(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with its content; locks have none that counts."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith("lock")
    }


def _refused(
    config: Config, backup: Path, code: int = 1, error: type[StartError] = RestoreFailed
) -> str:
    """The one line with which it is refused; nothing has been touched."""
    before = _all(config.data_path.parent)
    with pytest.raises(error) as refusal:
        restore(config, backup)
    assert refusal.value.exit_code == code
    assert _all(config.data_path.parent) == before
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


async def test_all_that_the_backup_has_is_there_again(tmp_path: Path) -> None:
    """Records, events, inputs and results; and the backup stays as it is."""
    noise = "head -c 100000 /dev/urandom > noise"
    backup = tmp_path / "backup"
    async with running_system(tmp_path) as system:
        id = await system.portal.upload({**LARGE, "run.sh": noise})
        record = await system.portal.ended(id)
        result = (await system.portal.get(f"/download/{id}")).body
        events = (await system.portal.get("/events")).json
        config = system.server[CONFIG]
        back_up(config, backup)
    own_id = (config.data_path / "id").read_bytes()
    before = _all(backup)
    _move_away(config)

    assert restore(config, backup).startswith("1 jobs are restored. The server will start paused")

    async with server_of(tmp_path, AWAY) as server:
        assert await server.portal.job(id) == record
        assert (await server.portal.get(f"/download/{id}")).body == result
        assert (await server.portal.get("/events")).json == events
        assert (await server.portal.request("DELETE", f"/jobs/{id}")).status in (200, 202)
    assert (config.data_path / "id").read_bytes() == own_id
    assert _all(backup) == before


async def test_the_server_is_paused(config: Config, backup: Path, tmp_path: Path) -> None:
    """It says so, and calls nobody; it takes uploads."""
    _move_away(config)
    restore(config, backup)

    async with server_of(tmp_path, AWAY) as server:
        assert (await server.portal.get("/health")).json["paused"] is True
        id = await server.portal.upload("true")
        assert (await server.portal.job(id))["status"] == "Queued"


async def test_numbers_go_on_ahead(config: Config, backup: Path, tmp_path: Path) -> None:
    """Of jobs and events: whoever knows of later ones never meets them again."""
    _move_away(config)
    restore(config, backup)

    async with server_of(tmp_path, AWAY) as server:
        last = (await server.portal.get("/events")).json["next"]
        id = await server.portal.upload("true")
        (event,) = (await server.portal.get("/events", params={"after": last})).json["events"]
    assert last == 2
    assert id > 2 + AHEAD
    assert event["seq"] > 2 + AHEAD


async def test_the_same_backup_may_be_restored_twice(
    config: Config, backup: Path, tmp_path: Path
) -> None:
    """What was done in between has numbers that are not given again."""
    ids, events = [], []
    for _ in range(2):
        _move_away(config)
        restore(config, backup)
        async with server_of(tmp_path, AWAY) as server:
            for _ in range(3):
                ids.append(await server.portal.upload("true"))
            events += [e["seq"] for e in (await server.portal.get("/events")).json["events"][2:]]
    assert len(events) == 6
    assert sorted(set(ids)) == ids
    assert sorted(set(events)) == events


async def test_a_server_without_jobs_begins_ahead_too(tmp_path: Path) -> None:
    """It may have given the first numbers after the backup."""
    config = server_config(tmp_path / "server")
    take_identity(config).release()
    back_up(config, tmp_path / "backup")
    _move_away(config)
    restore(config, tmp_path / "backup")

    async with server_of(tmp_path, AWAY) as server:
        assert await server.portal.upload("true") > AHEAD


async def test_where_database_and_files_go_may_be_other_places(
    config: Config, backup: Path, tmp_path: Path
) -> None:
    """Another machine, or an empty disk that is mounted there."""
    data = tmp_path / "disk" / "data"
    data.mkdir(parents=True)
    other = server_config(data, db_path=data / "db.sqlite")

    restore(other, backup)

    take_identity(other).release()
    assert len(list(data.rglob("in"))) == 1


async def test_files_are_copied_from_another_disk(config: Config, backup: Path) -> None:
    """For their owner alone."""
    other_disk = Path("/dev/shm") / f"{backup.parent.name}-{os.getpid()}"  # noqa: S108
    if other_disk.parent.stat().st_dev == backup.stat().st_dev:
        pytest.skip("there is one disk only")
    other = server_config(other_disk / "data")
    try:
        restore(other, backup)
        (there,) = other.data_path.rglob("in")
        assert there.read_bytes() == LARGE["in"]
        assert sorted(path.name for path in other.data_path.iterdir()) == ["id", "jobs", "lock"]
        assert other.data_path.joinpath("jobs").stat().st_mode & 0o077 == 0
        assert other.db_path.stat().st_mode & 0o077 == 0
    finally:
        shutil.rmtree(other_disk, ignore_errors=True)


# --- what is refused


@pytest.mark.parametrize("left", ["", "-wal", "-shm", "-journal"])
async def test_a_database_is_not_overwritten(config: Config, backup: Path, left: str) -> None:
    """Nor what belongs to one: the line names what to move away."""
    _move_away(config)
    there = config.db_path.with_name(config.db_path.name + left)
    there.write_text("mine")

    assert f"{there} would be overwritten; move" in _refused(config, backup)


@pytest.mark.parametrize("left", ["id", "jobs", "orphans", "tmp"])
async def test_files_are_not_overwritten(config: Config, backup: Path, left: str) -> None:
    """Whatever of them is there."""
    _move_away(config)
    (config.data_path / left).mkdir(parents=True)

    assert f"{config.data_path} would be overwritten; move" in _refused(config, backup)


async def test_nothing_is_restored_under_a_server(config: Config, backup: Path) -> None:
    """It is told so, not to move away what the server works with."""
    identity = take_identity(config)
    message = _refused(config, backup, 2, SettingError)
    identity.release()
    assert "in use by an orch-server" in message


async def test_a_server_does_not_start_under_a_restore(
    config: Config, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told who has the folder."""
    _move_away(config)

    def try_to_start(source: Path, target: Path, temporary: Path) -> None:
        with pytest.raises(SettingError, match="in use by a restore of orch-server"):
            create_app(config)
        link_or_copy(source, target, temporary)

    monkeypatch.setattr(restoring, "link_or_copy", try_to_start)
    restore(config, backup)
    take_identity(config).release()


async def test_a_folder_that_is_no_backup_is_refused(config: Config, tmp_path: Path) -> None:
    """One that is not there, one with something else, one that was cut off."""
    _move_away(config)
    assert "is no backup" in _refused(config, tmp_path / "nowhere")
    assert "is no backup" in _refused(config, tmp_path / "away")
    (tmp_path / "backup" / "backup.json").unlink()
    assert "is no backup that came to its end" in _refused(config, tmp_path / "backup")


@pytest.mark.parametrize("harm", ["missing", "cut short"])
async def test_a_backup_without_a_file_is_refused(config: Config, backup: Path, harm: str) -> None:
    """It is named, and its job."""
    _move_away(config)
    (file,) = (backup / "jobs").rglob("in")
    file.unlink() if harm == "missing" else file.write_bytes(b"x")
    assert f"{file} of job 1 is missing or cut short" in _refused(config, backup)


@pytest.mark.parametrize("start", [0, 40960])
async def test_a_backup_whose_database_is_damaged_is_refused(
    config: Config, backup: Path, start: int
) -> None:
    """Wherever."""
    _move_away(config)
    content = bytearray((backup / "orch-server.sqlite").read_bytes())
    content[start : start + 4096] = b"\xff" * 4096
    (backup / "orch-server.sqlite").write_bytes(content)
    assert f"the database in {backup}" in _refused(config, backup)


async def test_a_backup_of_a_newer_version_is_refused(config: Config, backup: Path) -> None:
    """With code 3 and both versions."""
    _move_away(config)
    with contextlib.closing(sqlite3.connect(backup / "orch-server.sqlite")) as newer:
        newer.execute("PRAGMA user_version = 99")
    assert "version 99" in _refused(config, backup, 3, StoreUnusable)


# --- what was cut off


@pytest.mark.parametrize("step", ["link_or_copy", "make_durable", "_begin_generation",
                                  "write_whole", "remove_tree"])  # fmt: skip
async def test_what_was_cut_off_is_run_again(
    config: Config, backup: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever that was, no server starts on a half of it, and the second time brings all."""
    _move_away(config)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(restoring, step, cut)
        restore(config, backup)
    with pytest.raises(PairBroken, match="a restore into the folder was cut off; run it again"):
        create_app(config)

    if step == "remove_tree":  # the database had its place
        assert str(config.db_path) in _refused(config, backup)
        config.db_path.unlink()
    restore(config, backup)

    async with server_of(tmp_path, AWAY) as server:
        jobs = (await server.portal.get("/jobs")).json["jobs"]
        assert [job["id"] for job in jobs] == [2, 1]
        assert (await server.portal.request("DELETE", "/jobs/1")).status == 200
    assert sorted(path.name for path in config.data_path.iterdir()) == [
        "id", "jobs", "lock", "orphans", "tmp"
    ]  # fmt: skip
