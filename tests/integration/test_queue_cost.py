"""The cost of a decision, in steps of SQLite's machine: it does not grow with the queue."""

import sqlite3
from pathlib import Path

import pytest

from orchestrator_server.queue.dispatch import Limits
from support.store import add_job, bare_store, go, set_status


def _steps(store: sqlite3.Connection, slots: int, limits: Limits) -> int:
    """What one dispatch costs, and the changes of the jobs that it sends."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store.set_progress_handler(count, 1)
    sent = go(store, {"a": slots}, limits)
    store.set_progress_handler(None, 0)
    assert len(sent) == 1
    return steps


@pytest.mark.parametrize("users", [1, 50])
def test_a_decision_costs_the_same_for_any_length_of_queue(tmp_path: Path, users: int) -> None:
    """One more free slot, with 100 jobs waiting and with 20,000."""
    costs = []
    for length in (100, 20_000):
        with bare_store(tmp_path / f"{length}.sqlite") as store:
            store.execute("BEGIN")
            for n in range(length):
                add_job(store, n % users)
            limits = Limits(runs_per_user=5000, max_runs=5000)
            for slots in range(1, 20):
                _steps(store, slots, limits)
            costs.append(_steps(store, 20, limits))
    few, many = costs
    assert many <= few + 10


def test_a_decision_costs_the_same_for_any_number_of_users(tmp_path: Path) -> None:
    """Each of 20,000 users waits with one job."""
    costs = []
    for users in (100, 20_000):
        with bare_store(tmp_path / f"{users}.sqlite") as store:
            store.execute("BEGIN")
            for user in range(users):
                add_job(store, user)
            limits = Limits(runs_per_user=5, max_runs=5000)
            costs.append([_steps(store, slots, limits) for slots in range(1, 20)][-1])
    few, many = costs
    assert many <= few + 10


def test_a_decision_costs_the_same_after_any_number_of_jobs(tmp_path: Path) -> None:
    """The user has had 10,000 jobs before, or none; so had everybody else."""
    costs = []
    for past in (0, 10_000):
        with bare_store(tmp_path / f"{past}.sqlite") as store:
            store.execute("BEGIN")
            for n in range(past):
                set_status(store, add_job(store, n % 2), "Killed")
            for _ in range(30):
                add_job(store, 1)
            limits = Limits(runs_per_user=5000, max_runs=5000)
            costs.append([_steps(store, slots, limits) for slots in range(1, 20)][-1])
    few, many = costs
    assert many <= few + 10
