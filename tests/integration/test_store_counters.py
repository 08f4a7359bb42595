"""The counters that quotas are decided by never drift from the jobs they count."""

import random
import sqlite3
from pathlib import Path

import pytest

from orchestrator_shared.status import ACTIVE, TRANSITIONS, Status
from support.store import add_job, bare_store, set_status

_ACTIVE = f"({', '.join(repr(status.value) for status in sorted(ACTIVE))})"


def _counted(store: sqlite3.Connection) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    queues = store.execute(
        "SELECT service, user_id, sum(status = 'Queued'),"  # noqa: S608 - fixed text
        f" sum(status IN {_ACTIVE}) FROM jobs GROUP BY service, user_id"
    )
    loads = store.execute(
        "SELECT instance, service, count(*) FROM jobs"  # noqa: S608 - fixed text
        f" WHERE status IN {_ACTIVE} GROUP BY instance, service"
    )
    return set(map(tuple, queues)), set(map(tuple, loads))


def _kept(store: sqlite3.Connection) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    queues = store.execute("SELECT service, user_id, queued, active FROM queues")
    loads = store.execute("SELECT instance, service, active FROM loads WHERE active > 0")
    return set(map(tuple, queues)), set(map(tuple, loads))


@pytest.mark.parametrize("seed", [1, 2])
def test_counters_equal_the_jobs_after_any_changes(tmp_path: Path, seed: int) -> None:
    """2,000 legal changes of jobs of several users, services and clients, in any order."""
    random.seed(seed)
    with bare_store(tmp_path / "db.sqlite") as store:
        jobs: dict[int, Status] = {}
        for step in range(2000):
            open_jobs = [id for id, status in jobs.items() if TRANSITIONS[status]]
            if not open_jobs or random.random() < 0.2:
                user, service = random.randrange(4), random.choice(["x", "y"])
                jobs[add_job(store, user, service)] = Status.QUEUED
                continue
            id = random.choice(open_jobs)
            new = random.choice(sorted(TRANSITIONS[jobs[id]]))
            values: dict[str, object] = {}
            if new is Status.PROCESSING:
                # From Unknown: handed over to another client.
                values["instance"] = random.choice(["a", "b", "c"])
            elif new is Status.QUEUED:
                values["instance"] = None
            set_status(store, id, new, **values)
            jobs[id] = new
            if step % 100 == 0:
                assert _kept(store) == _counted(store)

        assert _kept(store) == _counted(store)
        seen = {row[0] for row in store.execute("SELECT DISTINCT new FROM history")}
        assert seen == set(Status)


def test_a_user_is_marked_as_served_when_a_job_goes(tmp_path: Path) -> None:
    """By the number of that change in history, which only grows: no clock is asked."""
    with bare_store(tmp_path / "db.sqlite") as store:
        id = add_job(store)
        set_status(store, id, "Processing", instance="a")
        set_status(store, id, "Running")

        (served,) = store.execute("SELECT served FROM queues").fetchone()

        row = store.execute("SELECT seq FROM history WHERE new = 'Processing'").fetchone()
        assert served == row["seq"]
