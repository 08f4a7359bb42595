"""A job as its row has it, and what belongs to it."""

from dataclasses import dataclass

from msgspec import Struct

from orchestrator_server.store.database import Row
from orchestrator_shared.messages import File
from orchestrator_shared.status import Status


class Job(Struct, frozen=True):
    """A row of the table jobs. Times are seconds since 1970, sizes bytes."""

    id: int
    user_id: int
    service: str
    ref: str | None
    status: Status
    ended_as: str | None
    version: int
    folder: str
    attempt: int
    floor: int
    lost: int
    spared: int
    instance: str | None
    start: str | None
    client: str | None
    payload: int | None
    created_at: float
    changed_at: float
    started_at: float | None
    ended_at: float | None
    exit_code: int | None
    fault: str | None
    reason: str | None
    cleaned_because: str | None
    stderr_tail: str | None
    wall_s: float | None
    cpu_s: float | None
    max_rss: int | None
    input_bytes: int
    kill_requested: int
    delete_requested: int
    handover: int
    idempotency_key: str | None
    input_digest: str | None
    result_bytes: int | None = None

    @classmethod
    def from_row(cls, row: Row) -> "Job":
        """A row of `SELECT jobs.*`, with or without the size of its result."""
        # The columns in their order: to look for each by its name would take ten times as long.
        id, user_id, service, ref, status, *rest = row
        return cls(id, user_id, service, ref, Status(status), *rest)


@dataclass(frozen=True, slots=True)
class JobInput:
    """The files of a job: name and size of each, and their bytes in order where they are few."""

    files: tuple[File, ...]
    body: bytes | None

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Name and size of each file, in order."""
        return [(file.name, file.size) for file in self.files]


@dataclass(frozen=True, slots=True)
class Result:
    """The stored result of a job: a file in its folder, or bytes."""

    size: int
    sha256: str
    file: str | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended, as its client tells it."""

    status: Status
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    stderr_tail: str | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
