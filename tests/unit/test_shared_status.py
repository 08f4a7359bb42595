"""The states of jobs and payloads, against the table that users are given."""

from orchestrator_shared.status import (
    ACTIVE,
    ENDED,
    PAYLOAD_ENDED,
    PAYLOAD_TRANSITIONS,
    TERMINAL,
    TRANSITIONS,
    PayloadStatus,
    Status,
)

JOBS = {
    "Queued": "Processing Killed",
    "Processing": "Queued Submitted Running Unknown Completed Failed Invalid Killed",
    "Submitted": "Queued Running Unknown Completed Failed Invalid Killed",
    "Running": "Queued Unknown Completed Failed Invalid Killed",
    "Unknown": "Queued Processing Submitted Running Completed Failed Invalid Killed",
    "Completed": "Cleaned",
    "Failed": "Cleaned",
    "Invalid": "Cleaned",
    "Killed": "Cleaned",
    "Cleaned": "",
}
PAYLOADS = {
    # An end without a run: killed before its start, no run.sh, lost.
    "Prepared": "Running Completed Failed Invalid Killed",
    "Running": "Completed Failed Invalid Killed",
    "Completed": "Cleaned",
    "Failed": "Cleaned",
    "Invalid": "Cleaned",
    "Killed": "Cleaned",
    "Cleaned": "",
}


def test_a_job_changes_as_the_table_says() -> None:
    """Every state is in it, and nothing else is."""
    found = {str(old): {str(new) for new in allowed} for old, allowed in TRANSITIONS.items()}

    assert found == {old: set(allowed.split()) for old, allowed in JOBS.items()}
    assert set(TRANSITIONS) == set(Status)


def test_a_payload_changes_as_the_table_says() -> None:
    """Every state is in it, and nothing else is."""
    found = {
        str(old): {str(new) for new in allowed} for old, allowed in PAYLOAD_TRANSITIONS.items()
    }

    assert found == {old: set(allowed.split()) for old, allowed in PAYLOADS.items()}
    assert set(PAYLOAD_TRANSITIONS) == set(PayloadStatus)


def test_the_groups_of_states_follow_from_the_table() -> None:
    """A job has ended where only its files can still be removed; a client has it before that."""
    assert {status for status in Status if TRANSITIONS[status] == {Status.CLEANED}} == ENDED
    assert ENDED | {Status.CLEANED} == TERMINAL
    assert set(Status) - TERMINAL - {Status.QUEUED} == ACTIVE
    assert {str(status) for status in PAYLOAD_ENDED} == {str(status) for status in ENDED}


def test_no_state_leads_to_itself_and_every_job_can_end() -> None:
    """A change is a change, and no job can be caught between states."""
    for status in Status:
        assert status not in TRANSITIONS[status]
        if status not in TERMINAL:
            assert Status.KILLED in TRANSITIONS[status]
