"""What is read of jobs. Reading never writes."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator_server.store.database import Database, Row
from orchestrator_server.store.job import Job, JobInput, Result
from orchestrator_server.store.queries import sql
from orchestrator_shared.errors import NotFound
from orchestrator_shared.messages import decode_files
from orchestrator_shared.status import Status

#: How far `events` looks at once, in rows of history.
EVENTS_WINDOW = 10_000

#: The optional filters of `list_jobs`: fixed, tested pieces.
LIST_FILTERS: Mapping[str, str] = {
    "user_id": "user_id = :user_id",
    "service": "service = :service",
    "status": "status = :status",
    "ref": "ref = :ref",
}


@dataclass(frozen=True, slots=True)
class JobDetails:
    """A job with what its record shows beside its row."""

    job: Job
    history: list[Row]
    queue: Row | None
    ahead: int
    users: int
    loads: dict[str, int]


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How many jobs a service has in each state, and when its oldest Queued one came."""

    service: str
    jobs: dict[str, int]
    oldest_queued: float | None


def one(connection: sqlite3.Connection, name: str, **values: Any) -> Row | None:
    """The first row of a statement; None if it has none."""
    row: Row | None = connection.execute(sql(name), values).fetchone()
    return row


def find(connection: sqlite3.Connection, id: int, user_id: int | None = None) -> Job:
    """The job of this id, if it is this user's.

    Raises:
        NotFound: there is none, or it is another user's.
    """
    row = one(connection, "job", id=id)
    if row is None or (user_id is not None and row["user_id"] != user_id):
        raise NotFound("job", id)
    return Job.from_row(row)


def read_input(connection: sqlite3.Connection, id: int) -> JobInput | None:
    """The files of a job; None if they have been removed."""
    row = one(connection, "input", job=id)
    return JobInput(decode_files(row["manifest"]), row["body"]) if row else None


class Records:
    """All that is read of jobs, in the order of a job's way."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- 2 queue

    async def services_waiting(self) -> list[str]:
        """The services that have jobs which wait for a client."""

        def step(connection: sqlite3.Connection) -> list[str]:
            return [row["service"] for row in connection.execute(sql("services_waiting"))]

        return await self._database.read(step)

    # --- 3 send

    async def input(self, id: int) -> JobInput | None:
        """The files of a job; None if they have been removed."""
        return await self._database.read(lambda connection: read_input(connection, id))

    async def processing_at(self, instance: str) -> list[Job]:
        """The jobs whose submit to this client has no outcome yet."""
        return await self._select("processing_at", instance=instance)

    # --- 4 run

    async def held_by(self, instance: str) -> list[Job]:
        """The jobs that this client holds, as far as the server knows."""
        return await self._select("held_by", instance=instance)

    async def active_at(self, instance: str) -> list[Job]:
        """All jobs that this client has, or may have."""
        return await self._select("active_at", instance=instance)

    async def bound_addresses(self) -> list[str]:
        """Where the clients that have jobs were met."""

        def step(connection: sqlite3.Connection) -> list[str]:
            return [row["client"] for row in connection.execute(sql("bound_addresses"))]

        return await self._database.read(step)

    async def bound_instances(self) -> list[str]:
        """The clients that have jobs, whether they answer or not."""

        def step(connection: sqlite3.Connection) -> list[str]:
            return [row["instance"] for row in connection.execute(sql("bound_instances"))]

        return await self._database.read(step)

    async def client_loads(self) -> dict[str, int]:
        """The active jobs of each client that has some, by its instance."""

        def step(connection: sqlite3.Connection) -> dict[str, int]:
            loads = connection.execute(sql("client_loads"))
            return {row["instance"]: row["active"] for row in loads}

        return await self._database.read(step)

    async def service_states(self, services: Sequence[str]) -> list[ServiceState]:
        """How these services stand, and all others that have jobs."""

        def step(connection: sqlite3.Connection) -> list[ServiceState]:
            found: dict[str, dict[str, int]] = {service: {} for service in services}
            for row in connection.execute(sql("states")):
                found.setdefault(row["service"], {})[row["status"]] = row["jobs"]
            states = []
            for service, jobs in found.items():
                oldest = one(connection, "oldest_queued", service=service)
                since = oldest["created_at"] if oldest else None
                states.append(ServiceState(service, jobs, since))
            return states

        return await self._database.read(step)

    # --- 6 download

    async def get(self, id: int, user_id: int | None = None) -> Job:
        """The job of this id, if it is this user's.

        Raises:
            NotFound: there is none, or it is another user's.
        """
        return await self._database.look(lambda connection: find(connection, id, user_id))

    async def get_result(self, id: int) -> Result | None:
        """The stored result of a job; None if it has none."""

        def step(connection: sqlite3.Connection) -> Result | None:
            row = one(connection, "result", job=id)
            return Result(row["size"], row["sha256"], row["file"], row["body"]) if row else None

        return await self._database.look(step)

    async def details(self, id: int, user_id: int | None = None) -> JobDetails:
        """A job with its history, and with what it waits for.

        Raises:
            NotFound: there is none, or it is another user's.
        """
        # Only of a Queued job it is counted what is ahead, in an index that may be long.
        step = partial(self._details_of, id=id, user_id=user_id)
        job = await self.get(id, user_id)
        queued = job.status is Status.QUEUED
        return await (self._database.read(step) if queued else self._database.look(step))

    def _details_of(
        self, connection: sqlite3.Connection, id: int, user_id: int | None
    ) -> JobDetails:
        return self._details(connection, find(connection, id, user_id))

    async def page(
        self, filters: Mapping[str, Any], limit: int, after: int | None
    ) -> list[JobDetails]:
        """Jobs with these values (see LIST_FILTERS), newest first, below the id `after`."""
        condition = " AND ".join(LIST_FILTERS[name] for name in sorted(filters)) or "true"
        statement = sql("list_jobs").replace("AND true", f"AND {condition}")
        values = {**filters, "limit": limit, "after": after if after is not None else 2**63 - 1}

        def step(connection: sqlite3.Connection) -> list[JobDetails]:
            rows = connection.execute(statement, values).fetchall()
            return [self._details(connection, Job.from_row(row)) for row in rows]

        return await self._database.read(step)

    async def events(
        self, after: int, user_id: int | None, service: str | None, limit: int
    ) -> tuple[list[Row], int]:
        """Up to `limit` changes behind the number `after`, and the number to go on from."""

        def step(connection: sqlite3.Connection) -> tuple[list[Row], int]:
            last: int = connection.execute(sql("last_event")).fetchone()["seq"]
            found: list[Row] = []
            position = after
            while position < last and len(found) < limit:
                following = connection.execute(sql("next_event"), {"after": position}).fetchone()
                position = following["seq"] - 1
                until = min(position + EVENTS_WINDOW, last)
                values = {
                    "after": position,
                    "until": until,
                    "user_id": user_id,
                    "service": service,
                    "limit": limit - len(found),
                }
                found += connection.execute(sql("events"), values).fetchall()
                position = until
            if len(found) == limit:
                position = found[-1]["seq"]
            return found, max(position, after)

        return await self._database.read(step)

    def _details(self, connection: sqlite3.Connection, job: Job) -> JobDetails:
        history = connection.execute(sql("job_history"), {"job": job.id}).fetchall()
        if job.status is not Status.QUEUED:
            return JobDetails(job, history, None, 0, 0, {})
        place = {"service": job.service, "user_id": job.user_id}
        ahead = one(connection, "jobs_ahead", id=job.id, **place)
        users = one(connection, "users_queued", service=job.service)
        loads = connection.execute(sql("service_loads"), {"service": job.service})
        return JobDetails(
            job,
            history,
            one(connection, "user_queue", **place),
            ahead["ahead"] if ahead else 0,
            users["users"] if users else 0,
            {row["instance"]: row["active"] for row in loads},
        )

    # --- 7 clean

    async def expired(self, service: str, before: float, limit: int) -> list[int]:
        """Ended jobs of a service that ended before this time, oldest first."""
        return await self._ids("expired", service=service, before=before, limit=limit)

    async def to_delete(self, limit: int) -> list[int]:
        """Ended jobs whose files somebody wants removed."""
        return await self._ids("to_delete", limit=limit)

    async def known_services(self) -> list[str]:
        """All services that ever had a job."""

        def step(connection: sqlite3.Connection) -> list[str]:
            return [row["service"] for row in connection.execute(sql("known_services"))]

        return await self._database.read(step)

    async def owns(self, folder: str) -> bool:
        """Whether a job that is not Cleaned has this folder."""

        def step(connection: sqlite3.Connection) -> bool:
            row = one(connection, "job_by_folder", folder=folder)
            return row is not None and row["status"] != Status.CLEANED

        return await self._database.read(step)

    async def _select(self, name: str, **values: Any) -> list[Job]:
        def step(connection: sqlite3.Connection) -> list[Job]:
            return [Job.from_row(row) for row in connection.execute(sql(name), values)]

        return await self._database.read(step)

    async def _ids(self, name: str, **values: Any) -> list[int]:
        def step(connection: sqlite3.Connection) -> list[int]:
            return [row["id"] for row in connection.execute(sql(name), values)]

        return await self._database.read(step)
