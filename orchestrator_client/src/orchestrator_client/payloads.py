"""The index of payloads: what is where, rebuilt from the disk at each start."""

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from orchestrator_client.identity import OWNER
from orchestrator_shared.errors import NotFound, SettingError
from orchestrator_shared.folders import FolderLock
from orchestrator_shared.messages import PackedResult, PayloadState
from orchestrator_shared.queries import read_queries
from orchestrator_shared.status import PAYLOAD_ENDED, PayloadStatus

log = logging.getLogger(__name__)

#: The statements that change a payload's state.
CHANGES_OF_STATE: Final = ("insert", "running", "ended", "cleaned")
#: What tells the file of an index from any other database: "orch" as bytes.
APPLICATION_ID: Final = 0x6F726368
#: Called with each payload that has changed.
Listener = Callable[["Payload"], None]


@cache
def sql(name: str) -> str:
    """The statement of payloads.sql of this name."""
    return _queries()[name]


@cache
def _queries() -> dict[str, str]:
    return read_queries(resources.files(__package__).joinpath("payloads.sql"))


class Payload(Struct, frozen=True):
    """One attempt of a job, as it is now: a row of the index. Sizes are bytes, times seconds."""

    id: int
    server: str
    job: int | None
    attempt: int | None
    service: str
    #: How long it may run (seconds), as far as its service says.
    limit_s: float | None
    status: PayloadStatus
    pid: int = 0
    killed: bool = False
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    lost: bool = False
    handed_back: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
    stderr_tail: str | None = None
    result_size: int | None = None
    result_sha256: str | None = None
    ended_at: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it but the removal of its files."""
        return self.status in PAYLOAD_ENDED or self.status is PayloadStatus.CLEANED

    def shown(self, loc: str) -> PayloadState:
        """The payload as its answers and the stream show it; `loc` is its working directory."""
        result = None
        if self.result_size is not None and self.result_sha256 is not None:
            result = PackedResult(size=self.result_size, sha256=self.result_sha256)
        return PayloadState(
            id=self.id,
            status=self.status,
            loc=loc,
            pid=self.pid,
            killed=self.killed,
            job=self.job or 0,
            attempt=self.attempt or 0,
            exit_code=self.exit_code,
            fault=self.fault,
            reason=self.reason,
            lost=self.lost,
            handed_back=self.handed_back,
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
            max_rss=self.max_rss,
            stderr_tail=self.stderr_tail,
            result=result,
        )


class PayloadEnd(Struct, frozen=True):
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
        #: The rows of all that are not Cleaned, as they were last written: nothing is asked for
        #: that is known.
        self._rows: dict[int, Payload] = {}
        #: How many of each server are Prepared or Running, and how many are Prepared in all.
        self._active: Counter[str] = Counter()
        self._prepared = 0
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
        payload = self._rows.get(id)
        if payload is None and id < 2**63:
            payload = self._one("by_id", id=id)
        if payload is None:
            raise NotFound("payload", id if id < 2**63 else 0)
        return payload

    def of_attempt(self, server: str, job: int, attempt: int) -> Payload | None:
        """The payload of this attempt of a server's job."""
        return self._one("by_attempt", server=server, job=job, attempt=attempt)

    def attempts(self, server: str, job: int) -> list[Payload]:
        """All attempts of a server's job that were ever held here, the highest last."""
        return self._all("attempts", server=server, job=job)

    def of_server(self, server: str) -> list[Payload]:
        """All that a server has not acknowledged yet, oldest first."""
        return self._all("of_server", server=server)

    def with_status(self, status: PayloadStatus) -> list[Payload]:
        """All that are in this state, oldest first."""
        return self._all("with_status", status=status.value)

    def oldest_prepared(self) -> Payload | None:
        """The one whose turn it is."""
        return self._one("oldest_prepared") if self._prepared else None

    def unacknowledged(self, server: str) -> int:
        """How many that have ended a server has not acknowledged yet."""
        return self._number("unacknowledged", server=server)

    def active(self, but_of: str | None = None) -> int:
        """How many are Prepared or Running; without those of one server, if it is named."""
        return self._active.total() - (self._active[but_of] if but_of is not None else 0)

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
        new = Payload(id, server, job, attempt, service, limit_s, PayloadStatus.PREPARED)
        self._connection.execute(sql("insert"), asdict(new))
        return self._changed("insert", new)

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
        return self._change("running", id, status=PayloadStatus.RUNNING, pid=pid)

    def set_pid(self, id: int, pid: int) -> None:
        """run.sh runs as this process. That is no change that its server needs to be told of."""
        if self._update("set_pid", id, pid=pid):
            self._keep(replace(self._rows[id], pid=pid))

    def set_killed(self, id: int) -> Payload | None:
        """Somebody asked for its end."""
        return self._change("set_killed", id, killed=True)

    def set_ended(self, id: int, end: PayloadEnd) -> Payload | None:
        """Its one end, once what belongs to it is packed."""
        asked = self.get(id).killed or end.status is PayloadStatus.KILLED
        killed = asked and not end.handed_back
        return self._change("ended", id, pid=0, killed=killed, **asdict(end))

    def set_cleaned(self, id: int, at: float) -> Payload | None:
        """Its files are about to go."""
        return self._change("cleaned", id, status=PayloadStatus.CLEANED, ended_at=at)

    def forget(self, before: float) -> None:
        """Forget what was dropped that long ago."""
        self._connection.execute(sql("forget"), {"before": before})

    def _update(self, name: str, id: int, **values: Any) -> bool:
        return self._connection.execute(sql(name), {"id": id, **values}).rowcount > 0

    def _change(self, name: str, id: int, **values: Any) -> Payload | None:
        if not self._update(name, id, **values):
            return None
        # What the statement has written, without reading it again.
        return self._changed(name, replace(self._rows[id], **values))

    def _changed(self, name: str, payload: Payload) -> Payload:
        self._keep(payload)
        # Before there is a listener nothing changes: what lies on the disk is taken up.
        if self.listener is not None:
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

    def _keep(self, payload: Payload) -> None:
        """A row was written: count it as what it is now."""
        former = self._rows.pop(payload.id, None)
        for row, one in ((former, -1), (payload, 1)):
            if row is not None and not row.has_ended:
                self._active[row.server] += one
                self._prepared += one * (row.status is PayloadStatus.PREPARED)
        if not self._active[payload.server]:
            del self._active[payload.server]
        if payload.status is not PayloadStatus.CLEANED:
            self._rows[payload.id] = payload

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
    # The disk has the truth: the index need not be durable.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.executescript(sql("schema"))
    return connection


def _payload(row: tuple[Any, ...]) -> Payload:
    # The columns in their order. SQLite has numbers for what is true or not.
    id, server, job, attempt, service, limit_s, status, pid, killed, *end = row
    exit_code, fault, reason, lost, handed_back, *rest = end
    return Payload(
        *(id, server, job, attempt, service, limit_s, PayloadStatus(status), pid, bool(killed)),
        *(exit_code, fault, reason, bool(lost), bool(handed_back), *rest),
    )
