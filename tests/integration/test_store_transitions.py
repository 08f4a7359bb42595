"""The database itself refuses a change of state that TRANSITIONS does not name."""

import sqlite3
from collections.abc import Iterator

import pytest

from orchestrator_shared.status import ACTIVE, ENDED, TERMINAL, TRANSITIONS, Status
from support.store import add_job, bare_store, set_status

#: From Queued to each state, over allowed changes only.
WAYS: dict[Status, tuple[Status, ...]] = {
    Status.QUEUED: (),
    Status.PROCESSING: (Status.PROCESSING,),
    Status.SUBMITTED: (Status.PROCESSING, Status.SUBMITTED),
    Status.RUNNING: (Status.PROCESSING, Status.RUNNING),
    Status.UNKNOWN: (Status.PROCESSING, Status.UNKNOWN),
    Status.COMPLETED: (Status.PROCESSING, Status.COMPLETED),
    Status.FAILED: (Status.PROCESSING, Status.FAILED),
    Status.INVALID: (Status.PROCESSING, Status.INVALID),
    Status.KILLED: (Status.KILLED,),
    Status.CLEANED: (Status.KILLED, Status.CLEANED),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """One database for all pairs; each test has a job of its own."""
    with bare_store(tmp_path_factory.mktemp("store") / "db.sqlite") as connection:
        yield connection


def _job_in(store: sqlite3.Connection, status: Status) -> int:
    id = add_job(store)
    for step in WAYS[status]:
        set_status(store, id, step, **({"instance": "a"} if step is Status.PROCESSING else {}))
    return id


def _row(store: sqlite3.Connection, id: int) -> sqlite3.Row:
    row: sqlite3.Row = store.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
    return row


def _history(store: sqlite3.Connection, id: int) -> list[sqlite3.Row]:
    return store.execute("SELECT * FROM history WHERE job = ? ORDER BY seq", (id,)).fetchall()


def test_the_table_of_transitions_is_that_of_the_program(store: sqlite3.Connection) -> None:
    """What the trigger goes by is TRANSITIONS, no more and no less."""
    table = {(old, new) for old, new in store.execute("SELECT old, new FROM transitions")}
    assert table == {(old.value, new.value) for old in TRANSITIONS for new in TRANSITIONS[old]}


def test_the_transitions_are_those_of_the_contract() -> None:
    """Written out once more, so that neither side changes unnoticed."""
    ends = {"Completed", "Failed", "Invalid", "Killed"}
    assert {old.value: {new.value for new in news} for old, news in TRANSITIONS.items()} == {
        "Queued": {"Processing", "Killed"},
        "Processing": {"Queued", "Submitted", "Running", "Unknown", *ends},
        "Submitted": {"Queued", "Running", "Unknown", *ends},
        "Running": {"Queued", "Unknown", *ends},
        "Unknown": {"Queued", "Processing", "Submitted", "Running", *ends},
        **{end: {"Cleaned"} for end in ends},
        "Cleaned": set(),
    }
    assert {status.value for status in ENDED} == ends
    assert ENDED | {Status.CLEANED} == TERMINAL
    assert set(Status) - TERMINAL - {Status.QUEUED} == ACTIVE


@pytest.mark.parametrize("new", Status)
@pytest.mark.parametrize("old", Status)
def test_a_change_happens_if_it_is_allowed_and_leaves_no_trace_if_not(
    store: sqlite3.Connection, old: Status, new: Status
) -> None:
    """An allowed one raises the version and writes history; another is refused by the trigger."""
    id = _job_in(store, old)
    before, history = _row(store, id), _history(store, id)

    if new in TRANSITIONS[old]:
        set_status(store, id, new, instance="a", changed_at=7.0)

        after, (*_, last) = _row(store, id), _history(store, id)
        assert after["status"] == new
        assert after["version"] == before["version"] + 1
        assert len(_history(store, id)) == len(history) + 1
        assert (last["old"], last["new"], last["at"]) == (old, new, 7.0)
        assert last["seq"] > history[-1]["seq"]
    else:
        with pytest.raises(sqlite3.IntegrityError, match="no such transition"):
            set_status(store, id, new, instance="a")

        assert tuple(_row(store, id)) == tuple(before)
        assert list(map(tuple, _history(store, id))) == list(map(tuple, history))


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.QUEUED])
def test_a_job_begins_as_queued_only(store: sqlite3.Connection, status: Status) -> None:
    """No row comes in with another state."""
    with pytest.raises(sqlite3.IntegrityError, match="begins as Queued"):
        store.execute(
            "INSERT INTO jobs (user_id, service, status, folder, created_at, changed_at,"
            " input_bytes) VALUES (1, 'example', ?, 'x', 1, 1, 0)",
            (status,),
        )


def test_a_change_must_raise_the_version(store: sqlite3.Connection) -> None:
    """Whoever waits for another version would otherwise miss it."""
    id = add_job(store)
    with pytest.raises(sqlite3.IntegrityError, match="raises the version"):
        store.execute("UPDATE jobs SET status = 'Killed' WHERE id = ?", (id,))
    assert _row(store, id)["status"] == "Queued"


def test_history_begins_with_the_upload(store: sqlite3.Connection) -> None:
    """Its first row comes from nothing."""
    (first,) = _history(store, add_job(store, user_id=5, now=3.0))
    assert (first["old"], first["new"], first["user_id"], first["at"]) == (None, "Queued", 5, 3.0)


def test_history_says_which_client_a_job_left(store: sqlite3.Connection) -> None:
    """A job that goes back to Queued has no client any more; the change still names it."""
    id = add_job(store)
    set_status(store, id, "Processing", instance="a", client="http://a", attempt=1)
    set_status(store, id, "Queued", instance=None, client=None, reason="refused")
    *_, last = _history(store, id)
    assert (last["client"], last["attempt"], last["reason"]) == ("http://a", 1, "refused")
