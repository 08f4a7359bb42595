"""What no record owns is set aside, and removed once nobody has missed it for long enough."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_server.store.files import Files
from orchestrator_server.store.job import Job
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_server.tasks.cleaner import Cleaner
from orchestrator_shared.uploads import ReceivedFile, Upload
from support.store import open_database

MAX_AGE = 1000.0
LONG_AGO = 7200.0


class Store:
    """The server's store without a server: nothing happens but what a test asks for."""

    def __init__(self, jobs: Jobs, records: Records, files: Files) -> None:
        self.jobs = jobs
        self.records = records
        self.files = files

    async def look(self) -> None:
        """What the Cleaner does first after a start."""
        await Cleaner(self.jobs, self.records, self.files, {}, MAX_AGE, 60.0).run_once()

    async def job(self) -> Job:
        """A job with a file in its folder."""
        folder = self.files.new_folder()
        self.folder(folder)
        upload = Upload(files=[ReceivedFile("file", 1)])
        job, _ = await self.jobs.insert(
            upload, user_id=1, service="example", ref=None, folder=folder, key=None
        )
        return job

    def folder(self, name: str) -> Path:
        """A folder that was touched long ago."""
        path = self.files.loc(name)
        path.mkdir()
        (path / "file").write_text("x")
        age(path, LONG_AGO)
        return path


def age(folder: Path, seconds: float) -> None:
    """Make a folder look as if it had not been touched for so long."""
    then = time.time() - seconds
    os.utime(folder, (then, then))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with nothing in it."""
    async with open_database(tmp_path / "db.sqlite") as database:
        yield Store(Jobs(database), Records(database), Files(tmp_path / "data"))


async def test_a_folder_without_a_record_is_set_aside(store: Store, tmp_path: Path) -> None:
    """A crash between files and commit leaves one behind: it is not removed at once."""
    orphan = store.folder(store.files.new_folder())
    await store.look()
    assert not orphan.exists()
    assert (tmp_path / "data" / "orphans" / orphan.name / "file").read_text() == "x"


async def test_what_was_set_aside_is_removed_after_max_age(store: Store, tmp_path: Path) -> None:
    """Its time counts from when it was set aside."""
    name = store.folder(store.files.new_folder()).name
    aside = tmp_path / "data" / "orphans" / name
    await store.look()
    age(aside, MAX_AGE / 2)
    await store.look()
    assert aside.exists()
    age(aside, 2 * MAX_AGE)
    await store.look()
    assert not aside.exists()


async def test_files_of_a_job_are_never_set_aside(store: Store) -> None:
    """However old they are, and whatever state the job is in."""
    queued, ended = await store.job(), await store.job()
    await store.jobs.request_kill(ended.id, None, "enough")
    await store.look()
    for job in (queued, ended):
        assert (store.files.loc(job.folder) / "file").exists()


async def test_a_clean_that_was_cut_short_is_finished(store: Store) -> None:
    """The commit comes first: what is left of a Cleaned job's files goes too."""
    job = await store.job()
    await store.jobs.request_kill(job.id, None, "enough")
    await store.jobs.clean(job.id, "kept for its time")
    await store.look()
    assert not store.files.loc(job.folder).exists()


async def test_a_folder_that_is_new_is_left_alone(store: Store) -> None:
    """Its upload may be about to commit."""
    fresh = store.files.loc(store.files.new_folder())
    fresh.mkdir()
    await store.look()
    assert fresh.exists()


@pytest.mark.parametrize("name", ["notes", "lost+found", "x" * 33])
async def test_what_the_server_did_not_make_is_left_alone(store: Store, name: str) -> None:
    """Only names that it makes itself are touched."""
    stranger = store.folder(name)
    await store.look()
    assert (stranger / "file").exists()


async def test_what_was_under_way_at_an_earlier_start_is_removed(
    store: Store, tmp_path: Path
) -> None:
    """Uploads and results that were cut short: nobody goes on with them."""
    (store.files.tmp / "upload-1").mkdir()
    (store.files.tmp / "upload-1" / "run.sh").write_text("true")
    again = Files(tmp_path / "data")
    assert list((tmp_path / "data" / "tmp").iterdir()) == [again.tmp]
    assert list(again.tmp.iterdir()) == []
