"""Which client gets a job, and how many: never more than it has free slots."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_server.queue.dispatch import Limits, Offer, dispatch
from support.store import add_job, bare_store, end, go, set_status

MANY = Limits(runs_per_user=10**6, max_runs=10**6)
AWAY = frozenset({"a"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database with 40 jobs of four users."""
    with bare_store(tmp_path / "db.sqlite") as connection:
        connection.execute("BEGIN")
        for n in range(40):
            add_job(connection, n % 4)
        yield connection


def test_the_client_with_the_most_free_slots_gets_the_job(store: sqlite3.Connection) -> None:
    """So they fill up evenly, each up to its slots."""
    sent = [job.instance for job in go(store, {"a": 2, "b": 5, "c": 3}, MANY)]
    assert sent[:2] == ["b", "b"]
    assert Counter(sent) == {"a": 2, "b": 5, "c": 3}


def test_among_equals_the_least_busy_machine_gets_it(store: sqlite3.Connection) -> None:
    """By the CPU load that the clients tell."""
    offers = [
        Offer("a", "start", "http://a", 1, 0, 80.0),
        Offer("b", "start", "http://b", 1, 0, 5.0),
    ]
    first, second = dispatch(store, "example", MANY, offers, frozenset({"a", "b"}), 1.0)
    assert (first.instance, second.instance) == ("b", "a")
    assert (first.client, second.client) == ("http://b", "http://a")


def test_what_others_run_there_takes_slots(store: sqlite3.Connection) -> None:
    """Slots that another server has filled are not offered twice."""
    assert len(go(store, {"a": 5}, MANY, others=3)) == 2
    assert go(store, {"a": 5}, MANY, others=3) == []
    assert go(store, {"a": 5}, MANY, others=9) == []


def test_a_freed_slot_is_used_again(store: sqlite3.Connection) -> None:
    """By as many jobs as have ended, wherever they ran."""
    sent = go(store, {"a": 2, "b": 2}, MANY)
    gone = [job for job in sent if job.instance == "b"]
    for job in gone:
        end(store, job.id)
    assert [job.instance for job in go(store, {"a": 2, "b": 2}, MANY)] == ["b", "b"]


def test_two_services_share_the_slots_of_a_client(store: sqlite3.Connection) -> None:
    """What one has taken is taken for the other too."""
    for _ in range(5):
        add_job(store, 1, "other")
    assert len(go(store, {"a": 3, "b": 1}, MANY)) == 4
    assert go(store, {"a": 3}, MANY, service="other") == []
    assert len(go(store, {"a": 5}, MANY, service="other")) == 2


def test_jobs_at_a_client_that_is_away_count_in_no_max_runs(store: sqlite3.Connection) -> None:
    """A client that hangs does not use up the service's quota."""
    limits = Limits(runs_per_user=100, max_runs=4)
    assert len(go(store, {"a": 4, "b": 4}, limits)) == 4
    assert go(store, {"a": 4, "b": 4}, limits) == []
    at_a = store.execute("SELECT active FROM loads WHERE instance = 'a'").fetchone()["active"]

    sent = go(store, {"a": 4, "b": 9}, limits, away=AWAY)

    assert [job.instance for job in sent] == ["b"] * at_a
    # Back again, they count: nothing more goes until the count is below the limit.
    assert go(store, {"a": 9, "b": 9}, limits) == []


def test_jobs_at_a_client_that_is_away_count_for_their_user(store: sqlite3.Connection) -> None:
    """They may still run there."""
    limits = Limits(runs_per_user=1, max_runs=100)
    assert len(go(store, {"a": 4, "b": 0}, limits)) == 4
    assert go(store, {"a": 4, "b": 9}, limits, away=AWAY) == []


def test_a_job_that_comes_back_frees_its_slot(store: sqlite3.Connection) -> None:
    """At the client that had it, and no other."""
    first, *_ = go(store, {"a": 2, "b": 2}, MANY)
    set_status(store, first.id, "Queued", instance=None)
    (again,) = go(store, {"a": 2, "b": 2}, MANY)
    assert (again.id, again.instance) == (first.id, first.instance)


def test_nothing_goes_without_a_client(store: sqlite3.Connection) -> None:
    """And nothing is changed by looking."""
    assert go(store, {}, MANY) == []
    assert store.execute("SELECT count(*) FROM history WHERE old IS NOT NULL").fetchone()[0] == 0
