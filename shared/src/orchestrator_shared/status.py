"""The states of a job and of a payload: pure data."""

from collections.abc import Mapping
from enum import StrEnum


class Status(StrEnum):
    """The state of a job, as the server keeps it."""

    #: Accepted and on disk; the Sender moves it on once quota and a client allow it.
    QUEUED = "Queued"
    #: Being sent to one client; the client's answer moves it on.
    PROCESSING = "Processing"
    #: A client holds it; the client's Runner moves it on.
    SUBMITTED = "Submitted"
    #: run.sh runs; its end moves it on.
    RUNNING = "Running"
    #: Its client cannot be reached, or its result not yet be fetched; the client's return does.
    UNKNOWN = "Unknown"
    #: run.sh ended with 0 and its result is stored; the Cleaner moves it on.
    COMPLETED = "Completed"
    #: Any other end that is nobody's wish; the Cleaner moves it on.
    FAILED = "Failed"
    #: It cannot be run; the Cleaner moves it on.
    INVALID = "Invalid"
    #: Ended because somebody asked for it; the Cleaner moves it on.
    KILLED = "Killed"
    #: Files removed, record kept: nothing moves it on.
    CLEANED = "Cleaned"


class PayloadStatus(StrEnum):
    """The state of a payload: one attempt of a job, as its client keeps it."""

    #: On the client's disk; the Runner moves it on once a slot is free.
    PREPARED = "Prepared"
    #: run.sh runs; its end moves it on.
    RUNNING = "Running"
    #: run.sh ended with 0 and its result is packed; the acknowledgement moves it on.
    COMPLETED = "Completed"
    #: It ended otherwise, or was lost; the acknowledgement moves it on.
    FAILED = "Failed"
    #: There is no run.sh; the acknowledgement moves it on.
    INVALID = "Invalid"
    #: Ended because somebody asked for it; the acknowledgement moves it on.
    KILLED = "Killed"
    #: Files removed: nothing moves it on.
    CLEANED = "Cleaned"


#: The ends of a job: each job reaches exactly one of them.
ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.INVALID, Status.KILLED})

#: The states in which nothing is left to do for a job but to remove its files.
TERMINAL = ENDED | {Status.CLEANED}

#: The states in which a job counts against quotas: a client has it, or may have it.
ACTIVE = frozenset({Status.PROCESSING, Status.SUBMITTED, Status.RUNNING, Status.UNKNOWN})

#: Which state a job may change to. The database holds the same table, and refuses anything else.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.PROCESSING, Status.KILLED}),
    Status.PROCESSING: frozenset(
        {Status.QUEUED, Status.SUBMITTED, Status.RUNNING, Status.UNKNOWN} | ENDED
    ),
    Status.SUBMITTED: frozenset({Status.QUEUED, Status.RUNNING, Status.UNKNOWN} | ENDED),
    Status.RUNNING: frozenset({Status.QUEUED, Status.UNKNOWN} | ENDED),
    Status.UNKNOWN: frozenset(
        {Status.QUEUED, Status.PROCESSING, Status.SUBMITTED, Status.RUNNING} | ENDED
    ),
    Status.COMPLETED: frozenset({Status.CLEANED}),
    Status.FAILED: frozenset({Status.CLEANED}),
    Status.INVALID: frozenset({Status.CLEANED}),
    Status.KILLED: frozenset({Status.CLEANED}),
    Status.CLEANED: frozenset(),
}

#: The ends of a payload.
PAYLOAD_ENDED = frozenset(
    {
        PayloadStatus.COMPLETED,
        PayloadStatus.FAILED,
        PayloadStatus.INVALID,
        PayloadStatus.KILLED,
    }
)

#: Which state a payload may change to.
PAYLOAD_TRANSITIONS: Mapping[PayloadStatus, frozenset[PayloadStatus]] = {
    PayloadStatus.PREPARED: frozenset({PayloadStatus.RUNNING} | PAYLOAD_ENDED),
    PayloadStatus.RUNNING: PAYLOAD_ENDED,
    PayloadStatus.COMPLETED: frozenset({PayloadStatus.CLEANED}),
    PayloadStatus.FAILED: frozenset({PayloadStatus.CLEANED}),
    PayloadStatus.INVALID: frozenset({PayloadStatus.CLEANED}),
    PayloadStatus.KILLED: frozenset({PayloadStatus.CLEANED}),
    PayloadStatus.CLEANED: frozenset(),
}
