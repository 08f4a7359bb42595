"""A job as its row has it, and what belongs to it."""

from typing import Any

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
    attempt: int = 0
    floor: int = 0
    lost: int = 0
    spared: int = 0
    instance: str | None = None
    start: str | None = None
    client: str | None = None
    payload: int | None = None
    created_at: float = 0.0
    changed_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    cleaned_because: str | None = None
    stderr_tail: str | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
    input_bytes: int = 0
    kill_requested: int = 0
    delete_requested: int = 0
    handover: int = 0
    idempotency_key: str | None = None
    input_digest: str | None = None
    result_bytes: int | None = None

    @classmethod
    def new(
        cls,
        id: int,
        *,
        user_id: int,
        service: str,
        ref: str | None,
        folder: str,
        now: float,
        **more: Any,
    ) -> "Job":
        """A job as it begins: what `insert_job` makes of these values."""
        begins = (id, user_id, service, ref, Status.QUEUED, None, 1, folder)
        return cls(*begins, created_at=now, changed_at=now, **more)

    @classmethod
    def from_row(cls, row: Row) -> "Job":
        """A row of `SELECT jobs.*`, with or without the size of its result."""
        # The columns in their order: to look for each by its name would take ten times as long.
        id, user_id, service, ref, status, *rest = row
        return cls(id, user_id, service, ref, Status(status), *rest)


class JobInput(Struct, frozen=True):
    """The files of a job: name and size of each, and their bytes in order where they are few."""

    files: tuple[File, ...]
    body: bytes | None

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Name and size of each file, in order."""
        return [(file.name, file.size) for file in self.files]


class Result(Struct, frozen=True):
    """The stored result of a job: a file in its folder, or bytes."""

    size: int
    sha256: str
    file: str | None
    body: bytes | None


class End(Struct, frozen=True):
    """How an attempt ended, as its client tells it."""

    status: Status
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    stderr_tail: str | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
