"""The index of payloads: what is where, rebuilt from the disk at each start."""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from orchestrator_shared.errors import NotFound
from orchestrator_shared.protocol import PayloadSchema
from orchestrator_shared.queries import read_queries
from orchestrator_shared.status import PayloadStatus

#: Called with each payload that has changed.
Listener = Callable[["Payload"], None]


@cache
def sql(name: str) -> str:
    """The statement of payloads.sql of this name."""
    return _queries()[name]


@cache
def _queries() -> dict[str, str]:
    return read_queries(resources.files(__package__).joinpath("payloads.sql"))


@dataclass(frozen=True, slots=True)
class Payload:
    """One attempt of a job, as it is now. Sizes are bytes, times seconds."""

    id: int
    server: str
    job: int | None
    attempt: int | None
    service: str
    status: PayloadStatus
    pid: int
    killed: int
    exit_code: int | None
    fault: str | None
    reason: str | None
    lost: int
    wall_s: float | None
    cpu_s: float | None
    max_rss: int | None
    stderr_tail: str | None
    result_size: int | None
    result_sha256: str | None
    ended_at: float | None

    def to_json(self, loc: Path) -> dict[str, Any]:
        """The payload as its answers and the stream show it; `loc` is its working directory."""
        result = None
        if self.result_size is not None:
            result = {"size": self.result_size, "sha256": self.result_sha256}
        values = asdict(self)
        shown: dict[str, Any] = PayloadSchema().dump(
            {**values, "input": {}, "loc": str(loc), "result": result}
        )
        return shown


@dataclass(frozen=True, slots=True)
class PayloadEnd:
    """How a payload ended, and what was packed of it."""

    status: PayloadStatus
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    lost: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
    stderr_tail: str | None = None
    result_size: int | None = None
    result_sha256: str | None = None


class Payloads:
    """The index. It is small and local: each call takes microseconds, in the event loop."""

    def __init__(self, db_path: str) -> None:
        """Begin with an empty index: what an earlier start left in the file is of no use."""
        if db_path != ":memory:":
            for name in (db_path, f"{db_path}-wal", f"{db_path}-shm", f"{db_path}-journal"):
                Path(name).unlink(missing_ok=True)
        self.listener: Listener | None = None
        self._connection = sqlite3.connect(db_path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # The disk has the truth: the index need not be durable.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(sql("schema"))

    def close(self) -> None:
        """Let go of the index."""
        self._connection.close()

    # --- reading

    def get(self, id: int) -> Payload:
        """The payload of this id.

        Raises:
            NotFound: there is none.
        """
        payload = self._one("by_id", id=id) if id < 2**63 else None
        if payload is None:
            raise NotFound("payload", id if id < 2**63 else 0)
        return payload

    def of_attempt(self, server: str, job: int, attempt: int) -> Payload | None:
        """The payload of this attempt of a server's job."""
        return self._one("by_attempt", server=server, job=job, attempt=attempt)

    def highest_attempt(self, server: str, job: int) -> int:
        """The highest attempt of a job that was ever held here; 0 for none."""
        return self._number("highest_attempt", server=server, job=job)

    def of_server(self, server: str) -> list[Payload]:
        """All that a server has not acknowledged yet, oldest first."""
        return self._all("of_server", server=server)

    def with_status(self, status: PayloadStatus) -> list[Payload]:
        """All that are in this state, oldest first."""
        return self._all("with_status", status=status.value)

    def oldest_prepared(self) -> Payload | None:
        """The one whose turn it is."""
        return self._one("oldest_prepared")

    def active(self, but_of: str | None = None) -> int:
        """How many are Prepared or Running; without those of one server, if it is named."""
        if but_of is None:
            return self._number("active")
        return self._number("active_of_others", server=but_of)

    def ended_before(self, before: float, unclaimed_before: float) -> list[Payload]:
        """Those that ended so long ago: of servers that cannot acknowledge, and of others."""
        return self._all("ended_before", before=before, unclaimed_before=unclaimed_before)

    # --- changing: each is one guarded update; None where the state does not allow it

    def insert(
        self, id: int, server: str, job: int | None, attempt: int | None, service: str
    ) -> Payload:
        """A new payload, Prepared."""
        payload = self._change(
            "insert", id=id, server=server, job=job, attempt=attempt, service=service
        )
        assert payload is not None  # noqa: S101 - an INSERT returns its row or raises
        return payload

    def insert_cleaned(
        self,
        id: int,
        server: str,
        job: int | None,
        attempt: int | None,
        service: str,
        ended_at: float,
    ) -> None:
        """One that was dropped by an earlier start: remembered, so that nothing runs twice."""
        self._connection.execute(
            sql("insert_cleaned"),
            {
                "id": id,
                "server": server,
                "job": job,
                "attempt": attempt,
                "service": service,
                "ended_at": ended_at,
            },
        )

    def set_running(self, id: int) -> Payload | None:
        """Its turn has come."""
        return self._change("running", id=id, pid=0)

    def set_pid(self, id: int, pid: int) -> Payload | None:
        """run.sh runs as this process."""
        return self._change("set_pid", id=id, pid=pid)

    def set_killed(self, id: int) -> Payload | None:
        """Somebody asked for its end."""
        return self._change("set_killed", id=id)

    def set_ended(self, id: int, end: PayloadEnd, ended_at: float | None = None) -> Payload | None:
        """Its one end, once what belongs to it is packed."""
        values = {**asdict(end), "status": end.status.value, "lost": int(end.lost)}
        now = ended_at if ended_at is not None else time.time()
        return self._change("ended", id=id, ended_at=now, **values)

    def set_cleaned(self, id: int) -> Payload | None:
        """Its files are about to go."""
        return self._change("cleaned", id=id)

    def _change(self, name: str, **values: Any) -> Payload | None:
        payload = self._one(name, **values)
        if payload is not None and self.listener is not None:
            self.listener(payload)
        return payload

    def _one(self, name: str, **values: Any) -> Payload | None:
        row = self._connection.execute(sql(name), values).fetchone()
        return _payload(row) if row else None

    def _all(self, name: str, **values: Any) -> list[Payload]:
        return [_payload(row) for row in self._connection.execute(sql(name), values)]

    def _number(self, name: str, **values: Any) -> int:
        return self._connection.execute(sql(name), values).fetchone()[0] or 0


def _payload(row: sqlite3.Row) -> Payload:
    return Payload(**{**dict(row), "status": PayloadStatus(row["status"])})
