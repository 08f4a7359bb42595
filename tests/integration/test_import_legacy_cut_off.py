"""An import that was cut off, wherever that was, has taken over all or nothing."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_server.config import Config
from orchestrator_server.original_server import ImportFailed
from orchestrator_server.store.connection import StoreUnusable
from support.limits import files_no_larger_than
from support.original_folder import (
    AWAY,
    LARGE,
    OriginalFolder,
    config_of,
    count_of,
    take_over,
    with_large_jobs,
)
from support.servers import server_of

#: An import that is killed as it calls a function for the so-manieth time.
_DIES = """
import os, sys
from pathlib import Path
from orchestrator_server import import_original as importing, original_server
from orchestrator_server.config import Config
name, count, database, data = sys.argv[1:]
module = importing if hasattr(importing, name) else original_server
real, calls = getattr(module, name), []
def dying(*values, **named):
    calls.append(values)
    if len(calls) == int(count):
        os.kill(os.getpid(), 9)
    return real(*values, **named)
setattr(module, name, dying)
importing.import_original(Config.from_env(), Path(database), Path(data), [])
"""


@pytest.fixture
def original(tmp_path: Path) -> OriginalFolder:
    """What was recorded, which has ten jobs, and two more that are large."""
    return with_large_jobs(tmp_path / "original")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Ours, with one client for the service of these jobs. Nothing is there yet."""
    return config_of(tmp_path)


async def _is_all_there(original: OriginalFolder, config: Config, tmp_path: Path) -> None:
    """Whether a server has all jobs, their files, and no others."""
    async with server_of(tmp_path, [AWAY], db_path=config.db_path) as server:
        jobs = (await server.portal.get("/jobs")).json["jobs"]
        assert [job["id"] for job in jobs] == list(range(12, 0, -1))
        for id in (1, 5, 11):
            answer = await server.portal.get(f"/download/{id}")
            assert answer.body == (original.files(id) / "output.zip").read_bytes()
    with contextlib.closing(sqlite3.connect(config.db_path)) as connection:
        large = connection.execute("SELECT folder FROM jobs WHERE id > 10").fetchall()
    folders = list(config.data_path.joinpath("jobs").iterdir())
    assert {path.name for path in folders} == {folder for (folder,) in large}
    assert all((path / "input" / "in").read_bytes() == LARGE for path in folders)
    assert sum((path / "result-1.zip").exists() for path in folders) == 1
    assert not list(config.db_path.parent.glob("*.import"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("read_original", 1),
        ("opened", 1),
        ("look_at", 3),
        ("make_pair", 1),
        ("_copy", 2),
        ("_copy_file", 3),
        ("remove_tree", 1),
        ("_write", 1),
        ("_insert", 6),
        ("_insert_result", 5),
        ("_highest_ids", 1),
        ("Counter", 1),
    ],
)
async def test_a_kill_leaves_all_or_nothing(
    original: OriginalFolder, config: Config, tmp_path: Path, name: str, count: int
) -> None:
    """Wherever it comes; the next import brings what is missing."""
    before = original.everything()
    died = subprocess.run(
        [sys.executable, "-c", _DIES, name, str(count), original.database, original.data],
        env={
            **os.environ,
            "DB_PATH": str(config.db_path),
            "DATA_PATH": str(config.data_path),
            "SERVICE_EXAMPLE_URL": AWAY,
        },
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    jobs = count_of(config)
    assert jobs == (12 if name == "Counter" else 0)

    said = take_over(original, config)

    assert said.startswith(f"{12 - jobs} jobs are taken over")
    assert original.everything() == before
    await _is_all_there(original, config, tmp_path)


async def test_a_full_disk_is_a_line(
    original: OriginalFolder, config: Config, tmp_path: Path
) -> None:
    """And leaves no file; with room the same import works."""
    (original.files(12) / "in").write_bytes(LARGE * 20)
    with files_no_larger_than(1_000_000), pytest.raises(ImportFailed) as error:
        take_over(original, config)
    assert error.value.exit_code == 1
    assert "File too large" in str(error.value)
    assert list(config.data_path.joinpath("jobs").iterdir()) == []
    assert list(config.data_path.joinpath("tmp").iterdir()) == []
    assert count_of(config) == 0
    (original.files(12) / "in").write_bytes(LARGE)
    take_over(original, config)
    await _is_all_there(original, config, tmp_path)


def test_a_database_that_cannot_grow_has_none_of_the_jobs(
    original: OriginalFolder, config: Config
) -> None:
    """As it ends a server: with code 3."""
    for _ in range(30):
        original.add("queued", {"run.sh": LARGE[:60_000]})
    with files_no_larger_than(1_000_000), pytest.raises(StoreUnusable) as error:
        take_over(original, config)
    assert error.value.exit_code == 3
    assert count_of(config) == 0
    assert take_over(original, config).startswith("42 jobs are taken over")
