"""The index of payloads: what is where, rebuilt from the disk at each start."""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from orchestrator_client.identity import OWNER
from orchestrator_shared.errors import NotFound, SettingError
from orchestrator_shared.folders import FolderLock
from orchestrator_shared.protocol import PayloadSchema
from orchestrator_shared.queries import read_queries
from orchestrator_shared.status import PayloadStatus

log = logging.getLogger(__name__)

#: The statements that change a payload's state.
CHANGES_OF_STATE: Final = ("insert", "running", "ended", "cleaned")
#: What tells the file of an index from any other database: "orch" as bytes.
APPLICATION_ID: Final = 0x6F726368
#: Made once: making a schema copies all its fields.
_SHOWN: Final = PayloadSchema()
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
    #: How long it may run (seconds), as far as its service says.
    limit_s: float | None
    status: PayloadStatus
    pid: int
    killed: bool
    exit_code: int | None
    fault: str | None
    reason: str | None
    lost: bool
    handed_back: bool
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
        shown: dict[str, Any] = _SHOWN.dump(
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
    #: Whether the client gave it up: it is to run elsewhere, or later.
    handed_back: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
    stderr_tail: str | None = None
    result_size: int | None = None
    result_sha256: str | None = None
    #: By the client's Clock (clocks.py).
    ended_at: float = 0.0


class Payloads:
    """The index. It is small and local: each call takes microseconds, in the event loop."""

    def __init__(self, db_path: str) -> None:
        """Begin with an empty index: what an earlier start left in the file is of no use.

        Raises:
            SettingError: the file is in use, is something else, or cannot be written.
        """
        self.listener: Listener | None = None
        self._lock: FolderLock | None = None
        if db_path != ":memory:":
            lock = Path(f"{db_path}.lock")
            self._lock = FolderLock(lock, Path(db_path), "DB_PATH", OWNER)
        try:
            self._connection = _begin(db_path)
        except BaseException as error:
            self._release()
            if isinstance(error, OSError | sqlite3.Error):
                raise SettingError(setting="DB_PATH", problem=f"{db_path}: {error}") from error
            raise

    def close(self) -> None:
        """Let go of the index."""
        self._connection.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

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

    def older_active(self, server: str, job: int, attempt: int) -> list[Payload]:
        """The attempts before this one of a server's job that have not ended."""
        return self._all("older_active", server=server, job=job, attempt=attempt)

    def of_server(self, server: str) -> list[Payload]:
        """All that a server has not acknowledged yet, oldest first."""
        return self._all("of_server", server=server)

    def with_status(self, status: PayloadStatus) -> list[Payload]:
        """All that are in this state, oldest first."""
        return self._all("with_status", status=status.value)

    def oldest_prepared(self) -> Payload | None:
        """The one whose turn it is."""
        return self._one("oldest_prepared")

    def unacknowledged(self, server: str) -> int:
        """How many that have ended a server has not acknowledged yet."""
        return self._number("unacknowledged", server=server)

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
        self,
        id: int,
        server: str,
        job: int | None,
        attempt: int | None,
        service: str,
        limit_s: float | None,
    ) -> Payload:
        """A new payload, Prepared."""
        payload = self._change(
            "insert",
            id=id,
            server=server,
            job=job,
            attempt=attempt,
            service=service,
            limit_s=limit_s,
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
        at: float,
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
                "at": at,
            },
        )

    def set_running(self, id: int, pid: int = 0) -> Payload | None:
        """Its turn has come, or came before this start."""
        return self._change("running", id=id, pid=pid)

    def set_pid(self, id: int, pid: int) -> Payload | None:
        """run.sh runs as this process."""
        return self._change("set_pid", id=id, pid=pid)

    def set_killed(self, id: int) -> Payload | None:
        """Somebody asked for its end."""
        return self._change("set_killed", id=id)

    def set_ended(self, id: int, end: PayloadEnd) -> Payload | None:
        """Its one end, once what belongs to it is packed."""
        return self._change("ended", id=id, **{**asdict(end), "status": end.status.value})

    def set_cleaned(self, id: int, at: float) -> Payload | None:
        """Its files are about to go."""
        return self._change("cleaned", id=id, at=at)

    def forget(self, before: float) -> None:
        """Forget what was dropped that long ago."""
        self._connection.execute(sql("forget"), {"before": before})

    def _change(self, name: str, **values: Any) -> Payload | None:
        payload = self._one(name, **values)
        # Before there is a listener nothing changes: what lies on the disk is taken up.
        if payload is not None and self.listener is not None:
            if name in CHANGES_OF_STATE:
                log.info(
                    "payload %d job %s attempt %s service %s is %s%s",
                    payload.id,
                    payload.job,
                    payload.attempt,
                    payload.service,
                    payload.status,
                    f": {payload.reason}" if name == "ended" else "",
                )
            self.listener(payload)
        return payload

    def _one(self, name: str, **values: Any) -> Payload | None:
        row = self._connection.execute(sql(name), values).fetchone()
        return _payload(row) if row else None

    def _all(self, name: str, **values: Any) -> list[Payload]:
        return [_payload(row) for row in self._connection.execute(sql(name), values)]

    def _number(self, name: str, **values: Any) -> int:
        return self._connection.execute(sql(name), values).fetchone()[0] or 0


def _begin(db_path: str) -> sqlite3.Connection:
    """An empty index; the file of an earlier one is removed, and no other."""
    if db_path != ":memory:" and Path(db_path).exists():
        with open(db_path, "rb") as file:
            # The header of a database, https://www.sqlite.org/fileformat.html#the_database_header
            header = file.read(100)
        if header and header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
            problem = f"{db_path} is not an index of orch-client, and is left alone"
            raise SettingError(setting="DB_PATH", problem=problem)
        for name in (db_path, f"{db_path}-wal", f"{db_path}-shm", f"{db_path}-journal"):
            Path(name).unlink(missing_ok=True)
    # It is filled by another thread at the start, before anybody else uses it.
    connection = sqlite3.connect(db_path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    # The disk has the truth: the index need not be durable.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.executescript(sql("schema"))
    return connection


def _payload(row: sqlite3.Row) -> Payload:
    values = dict(row)
    return Payload(
        **{
            **values,
            "status": PayloadStatus(values["status"]),
            "killed": bool(values["killed"]),
            "lost": bool(values["lost"]),
            "handed_back": bool(values["handed_back"]),
        }
    )
