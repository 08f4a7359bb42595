"""The programs where the original has been: the import, and starts that are refused."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator_client.identity import Identity
from orchestrator_server.backup import back_up
from orchestrator_server.config import Config
from orchestrator_server.keys import CLEANER, CONFIG
from orchestrator_server.restore import restore
from support.commands import command
from support.original_folder import (
    AWAY,
    LARGE,
    OriginalFolder,
    config_of,
    take_over,
    with_large_jobs,
)
from support.processes import Program
from support.servers import server_of, services
from support.system import running_system, server_config


@pytest.fixture
def original(tmp_path: Path) -> OriginalFolder:
    """What was recorded, which has ten jobs, and two more that are large."""
    return with_large_jobs(tmp_path / "original")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Ours, with one client for the service of these jobs. Nothing is there yet."""
    return config_of(tmp_path)


async def test_the_command_says_in_a_line_what_it_did(
    original: OriginalFolder, config: Config, tmp_path: Path
) -> None:
    """What it writes is for its owner alone."""
    environment = {"DB_PATH": str(config.db_path), "DATA_PATH": str(config.data_path)}
    server = Program("orch-server", tmp_path, environment)
    words = ("import-legacy", original.database, original.data)

    refused = await command(server, *words)
    assert refused.code == 2
    assert "--client example=URL" in refused.refusal
    done = await command(server, *words, "--client", f"example={AWAY}")
    again = await command(server, *words)

    assert (done.code, done.errors) == (0, "")
    assert done.out == (
        "12 jobs are taken over (3 Completed, 1 Failed, 1 Invalid, 1 Killed, 3 Running, "
        "3 Queued), 0 were before\n"
    )
    assert (again.code, again.out) == (0, "0 jobs are taken over, 12 were before\n")
    jobs = config.data_path / "jobs"
    for path in (config.db_path, jobs, *jobs.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("words", [[], ["import-legacy"]], ids=["server", "import"])
async def test_a_server_does_not_start_on_a_database_of_the_original(
    original: OriginalFolder, tmp_path: Path, words: list[str]
) -> None:
    """It says what to do, and touches nothing. Nor is it where jobs are taken to."""
    environment = {"DB_PATH": str(original.database), "DATA_PATH": str(original.data)}
    before = original.everything()
    paths = (original.database, original.data) if words else ()

    refused = await command(Program("orch-server", tmp_path, environment), *words, *paths)

    assert refused.code == 2
    assert refused.refusal.startswith("orch-server: DB_PATH: ")
    assert f"orch-server import-legacy {original.database} DATA" in refused.refusal
    assert original.everything() == before


def _payload_folder(folder: Path) -> None:
    folder.joinpath("1").mkdir()
    folder.joinpath("1", "output.zip").write_text("a result")


def _table_of_payloads(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "db.sqlite")) as connection:
        connection.execute("CREATE TABLE payloads (id INTEGER PRIMARY KEY, status TEXT, loc TEXT)")


@pytest.mark.parametrize("left", [_payload_folder, _table_of_payloads])
async def test_a_client_does_not_start_in_the_folder_of_the_original(
    tmp_path: Path, left: Callable[[Path], None]
) -> None:
    """Its server may want what is in it yet. It says what to do, and touches nothing."""
    data = tmp_path / "data"
    data.mkdir()
    left(data)
    before = {path: path.stat().st_mtime_ns for path in (data, *data.rglob("*"))}
    environment = {"DATA_PATH": str(data), "DB_PATH": str(data / "db.sqlite")}

    refused = await command(Program("orch-client", tmp_path, environment))

    assert refused.code == 2
    assert f"DATA_PATH: {data} is the folder of an original client" in refused.refusal
    assert "choose an empty folder" in refused.refusal
    assert {path: path.stat().st_mtime_ns for path in (data, *data.rglob("*"))} == before


async def test_a_client_starts_where_something_else_is(tmp_path: Path) -> None:
    """Its own folder, whatever lies in it; or one with what is nobody's payload."""
    own, other = tmp_path / "client", tmp_path / "other"
    async with running_system(tmp_path, client={"db_path": str(own / "index.sqlite")}) as system:
        await system.portal.ended(await system.portal.upload("true"))
    own.joinpath("1").mkdir()
    Identity(own).release()
    own.joinpath("1").rmdir()
    # Who it is was lost, its index was not.
    own.joinpath("instance").unlink()
    assert own.joinpath("index.sqlite").exists()
    Identity(own).release()
    other.mkdir()
    other.joinpath("1").write_text("a file")
    other.joinpath("lost+found").mkdir()
    with contextlib.closing(sqlite3.connect(other / "holidays.sqlite")) as connection:
        connection.execute("CREATE TABLE holidays (day TEXT)")
    Identity(other).release()


async def test_the_database_may_lie_among_the_files(
    original: OriginalFolder, tmp_path: Path
) -> None:
    """As the original's does: for all that is done with it."""
    inside = tmp_path / "server" / "db.sqlite"
    async with running_system(tmp_path, server={"db_path": inside}) as system:
        id = await system.portal.upload({"run.sh": "cp in out", "in": LARGE})
        assert (await system.portal.ended(id))["status"] == "Completed"
        back_up(system.server[CONFIG], tmp_path / "backup")
    async with running_system(
        tmp_path, server={"db_path": inside}, service={"max_age": 0.0}
    ) as system:
        assert (await system.portal.result(id)).read("out") == LARGE
        await system.server[CLEANER].run_once()
        assert (await system.portal.job(id))["status"] == "Cleaned"
        assert inside.exists()
    shutil.rmtree(tmp_path / "server")

    restored = server_config(tmp_path / "server", db_path=inside)
    assert restore(restored, tmp_path / "backup").startswith("1 jobs are restored")
    shutil.rmtree(tmp_path / "server")

    config = replace(restored, services=services({"example": [AWAY]}))
    assert take_over(original, config).startswith("12 jobs are taken over")
    async with server_of(tmp_path, [AWAY], db_path=inside) as server:
        answer = await server.portal.get("/download/11")
    assert answer.body == (original.files(11) / "output.zip").read_bytes()
