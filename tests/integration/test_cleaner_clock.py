"""A wall clock that jumps ahead makes nothing old."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_server.store.files import Files
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_server.tasks.cleaner import Cleaner
from orchestrator_shared.uploads import ReceivedFile, Upload
from support.store import open_database


class Clocks:
    """The clock on the wall, which somebody sets, and the one that measures durations."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.passed = 50.0

    def go_on(self, seconds: float) -> None:
        """Time passes, for both."""
        self.wall += seconds
        self.passed += seconds

    def on_the_wall(self) -> float:
        """What somebody may set."""
        return self.wall

    def stopwatch(self) -> float:
        """What nobody can."""
        return self.passed


@pytest.fixture
def clocks() -> Clocks:
    """Both clocks."""
    return Clocks()


@pytest.fixture
async def jobs(tmp_path: Path, clocks: Clocks) -> AsyncIterator[tuple[Jobs, Cleaner, int]]:
    """A job that has just ended, and who cleans it after 100 seconds."""
    async with open_database(tmp_path / "db.sqlite") as database:
        made, files = Jobs(database, clocks.on_the_wall), Files(tmp_path / "data")
        cleaner = Cleaner(
            made, Records(database), files, {}, 100.0, 60.0, clocks.on_the_wall, clocks.stopwatch
        )
        upload = Upload(files=[ReceivedFile("run.sh", 1)], body=b"x")
        job, _ = await made.insert(
            upload, user_id=1, service="example", ref=None, folder="f", key=None
        )
        await made.request_kill(job.id, None, "enough")
        yield made, cleaner, job.id


@pytest.mark.parametrize("jump", [3700.0, 10.0**6])
async def test_a_clock_that_jumps_ahead_makes_nothing_old(
    clocks: Clocks, jobs: tuple[Jobs, Cleaner, int], jump: float
) -> None:
    """By more than an hour: for an hour nothing is removed for its age, and it says so."""
    _, cleaner, _ = jobs
    clocks.wall += jump
    assert await cleaner.run_once() == 0
    assert cleaner.problem is not None
    clocks.go_on(3500)
    assert await cleaner.run_once() == 0
    assert cleaner.problem is not None
    clocks.go_on(200)
    assert await cleaner.run_once() == 1
    assert cleaner.problem is None


@pytest.mark.parametrize(("jump", "cleaned"), [(3000.0, 1), (-3000.0, 0), (-(10.0**6), 0)])
async def test_a_smaller_step_of_the_clock_is_believed(
    clocks: Clocks, jobs: tuple[Jobs, Cleaner, int], jump: float, cleaned: int
) -> None:
    """And one back keeps files longer, which harms nobody."""
    _, cleaner, _ = jobs
    clocks.wall += jump
    assert await cleaner.run_once() == cleaned
    assert cleaner.problem is None


async def test_time_that_only_passes_is_no_jump(
    clocks: Clocks, jobs: tuple[Jobs, Cleaner, int]
) -> None:
    """However long the Cleaner did not look."""
    _, cleaner, _ = jobs
    clocks.go_on(10.0**6)
    assert await cleaner.run_once() == 1


async def test_a_deleted_job_goes_whatever_the_clock_says(
    clocks: Clocks, jobs: tuple[Jobs, Cleaner, int]
) -> None:
    """Somebody asked for it; its age does not matter."""
    made, cleaner, id = jobs
    await made.request_delete(id, None)
    clocks.wall += 10.0**6
    assert await cleaner.run_once() == 1
    assert cleaner.problem is not None
