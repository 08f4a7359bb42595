"""Who goes next, decided on a real database: by order, never by time."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_server.queue.dispatch import Limits
from orchestrator_server.store.job import Job
from support.store import add_job, bare_store, end, go, set_status

MANY = Limits(runs_per_user=10**6, max_runs=10**6)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database; everything in one transaction, which is fast."""
    with bare_store(tmp_path / "db.sqlite") as connection:
        connection.execute("BEGIN")
        yield connection


def _users(jobs: list[Job]) -> list[int]:
    return [job.user_id for job in jobs]


def _run_all(
    store: sqlite3.Connection, slots: dict[str, int], limits: Limits, *, at_once: int = 1
) -> list[Job]:
    """Dispatch until nothing is left; the oldest jobs end first. Checks the limits at each step."""
    order: list[Job] = []
    running: list[Job] = []
    while (sent := go(store, slots, limits)) or running:
        order += sent
        running += sent
        assert len(running) <= min(limits.max_runs, sum(slots.values()))
        assert max(Counter(_users(running)).values()) <= limits.runs_per_user
        at_client = Counter(job.instance for job in running)
        assert all(at_client[name] <= count for name, count in slots.items())
        for job in running[:at_once]:
            end(store, job.id)
        del running[:at_once]
    return order


@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_quotas_hold_and_a_crowd_of_one_user_holds_up_nobody(
    store: sqlite3.Connection, at_once: int
) -> None:
    """250 jobs of one user, then one each of ten others: these go before its sixth job."""
    for _ in range(250):
        add_job(store, 1)
    for user in range(2, 12):
        add_job(store, user)

    order = _users(
        _run_all(store, {"a": 50}, Limits(runs_per_user=5, max_runs=10), at_once=at_once)
    )

    assert len(order) == 260
    last = max(order.index(user) for user in range(2, 12))
    assert order[:last].count(1) <= 5


@pytest.mark.parametrize("slots", [1, 4])
def test_fifty_users_with_one_job_each_pass_ten_thousand_of_one(
    store: sqlite3.Connection, slots: int
) -> None:
    """Each of them starts before the first user's next slots + 1 jobs."""
    for _ in range(10_000):
        add_job(store, 1)
    running = go(store, {"a": slots}, MANY)
    assert _users(running) == [1] * slots
    for user in range(2, 52):
        add_job(store, user)

    order: list[int] = []
    while set(order) < set(range(2, 52)):
        end(store, running.pop(0).id)
        sent = go(store, {"a": slots}, MANY)
        assert len(sent) == 1
        order += _users(sent)
        running += sent

    # Users with fewer active jobs go first: the crowd gets a slot only once it has none.
    assert order.count(1) <= slots
    for user in range(2, 52):
        assert order[: order.index(user)].count(1) <= slots


def test_a_slot_goes_to_the_user_with_the_fewest_active_jobs(store: sqlite3.Connection) -> None:
    """However long the others have waited."""
    for user, jobs in ((1, 4), (2, 3), (3, 2)):
        for _ in range(jobs):
            add_job(store, user)
    sent = go(store, {"a": 6}, MANY)
    assert _users(sent) == [1, 2, 3, 1, 2, 3]
    add_job(store, 4)
    add_job(store, 3)
    end(store, sent[2].id)
    assert _users(go(store, {"a": 8}, MANY)) == [4, 3, 1]


def test_among_equals_it_goes_to_the_one_served_longest_ago(store: sqlite3.Connection) -> None:
    """Who has never been served comes first of all; ids and numbers of users mean nothing."""
    for user in (9, 5, 7):
        add_job(store, user)
        add_job(store, user)
    order = _run_all(store, {"a": 1}, MANY)
    first, second = _users(order)[:3], _users(order)[3:]
    assert sorted(first) == [5, 7, 9]
    assert second == first

    for user in (3, *first):
        add_job(store, user)
    assert _users(_run_all(store, {"a": 1}, MANY)) == [3, *first]


def test_within_a_user_the_oldest_job_goes_first(store: sqlite3.Connection) -> None:
    """In the order of the uploads."""
    ids = [add_job(store, user) for user in (1, 2, 1, 2, 1, 2)]
    order = [job.id for job in _run_all(store, {"a": 2}, MANY)]
    assert [id for id in order if id in ids[::2]] == ids[::2]
    assert [id for id in order if id in ids[1::2]] == ids[1::2]


def test_a_job_that_came_back_is_the_head_of_its_users_queue(store: sqlite3.Connection) -> None:
    """What a client surely has not received waits before all younger ones."""
    first, *others = [add_job(store, 1) for _ in range(4)]
    (sent,) = go(store, {"a": 1}, MANY)
    assert sent.id == first

    set_status(store, first, "Queued", instance=None)

    assert [job.id for job in _run_all(store, {"a": 1}, MANY)] == [first, *others]


def test_each_attempt_has_a_number_of_its_own(store: sqlite3.Connection) -> None:
    """Client and attempt stand in the same commit, and no number is used twice."""
    id = add_job(store)
    for attempt, client in enumerate(["a", "b", "a"], 1):
        (sent,) = go(store, {client: 1}, MANY)
        assert (sent.id, sent.attempt, sent.instance) == (id, attempt, client)
        set_status(store, id, "Queued", instance=None)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(runs_per_user=2, max_runs=100), 6),
        (Limits(runs_per_user=100, max_runs=4), 4),
        (Limits(runs_per_user=1, max_runs=2), 2),
        (MANY, 10),
    ],
)
def test_a_dispatch_takes_no_count_over_its_limit(
    store: sqlite3.Connection, limits: Limits, expected: int
) -> None:
    """Of one user, of all, or of the slots; and the next one finds nothing to do."""
    for user in (1, 2, 3):
        for _ in range(10):
            add_job(store, user)
    assert len(go(store, {"a": 10}, limits)) == expected
    assert go(store, {"a": 10}, limits) == []


def test_services_have_queues_and_quotas_of_their_own(store: sqlite3.Connection) -> None:
    """A user at the limit of one may run in another."""
    for service in ("x", "y"):
        for _ in range(3):
            add_job(store, 1, service)
    limits = Limits(runs_per_user=1, max_runs=1)
    assert len(go(store, {"a": 10}, limits, service="x")) == 1
    assert len(go(store, {"a": 10}, limits, service="y")) == 1
    assert go(store, {"a": 10}, limits, service="x") == []
