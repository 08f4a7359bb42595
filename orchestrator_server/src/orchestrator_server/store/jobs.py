"""The changes of jobs: each one guarded update, or not at all."""

import hashlib
import json
import sqlite3
import time
from asyncio import Future
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrator_server.store.database import Database, Step
from orchestrator_server.store.job import End, Job, Result
from orchestrator_server.store.queries import sql
from orchestrator_server.store.records import find, one
from orchestrator_shared.errors import AlreadyEnded, KeyConflict
from orchestrator_shared.status import ACTIVE, Status
from orchestrator_shared.uploads import Upload


def _changed(connection: sqlite3.Connection, name: str, **values: Any) -> Job | None:
    """Run an `UPDATE … RETURNING` of jobs; None if no job was in a state that allows it."""
    row = one(connection, name, **values)
    return Job.from_row(row) if row else None


def input_digest(service: str, upload: Upload) -> str:
    """What makes two uploads the same: their service, and names and contents of their files."""
    files = sorted((file.name, file.size, file.sha256) for file in upload.files)
    return hashlib.sha256(json.dumps([service, files]).encode()).hexdigest()


class Jobs:
    """All that is done with jobs, in the order of a job's way.

    What a client's messages change gives back a future at once: the changes are made in the
    order of these calls, whether anybody awaits them or not.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    # --- 1 upload

    async def insert(
        self,
        upload: Upload,
        *,
        user_id: int,
        service: str,
        ref: str | None,
        folder: str,
        key: str | None,
        then: Mapping[str, Step[Any]] | None = None,
    ) -> tuple[Job, bool]:
        """Take a job in; with a key that was used before, the first one, and False. `then` follows
        in the same transaction.

        Raises:
            KeyConflict: the key was used for other files or another service.
        """
        digest = input_digest(service, upload) if key is not None else None
        manifest = msgspec.json.encode(upload.manifest()).decode()
        now = self._clock()

        def step(connection: sqlite3.Connection) -> tuple[Job, bool]:
            if key is not None:
                row = one(connection, "job_by_key", user_id=user_id, idempotency_key=key)
                if row is not None:
                    if row["input_digest"] != digest:
                        raise KeyConflict(job=row["id"]).about(row["id"], row["status"])
                    return Job.from_row(row), False
            values: dict[str, Any] = {
                "user_id": user_id,
                "service": service,
                "ref": ref,
                "folder": folder,
                "now": now,
                "input_bytes": upload.total,
                "idempotency_key": key,
                "input_digest": digest,
            }
            id = connection.execute(sql("insert_job"), values).lastrowid or 0
            connection.execute(
                sql("insert_input"), {"job": id, "manifest": manifest, "body": upload.body}
            )
            # Made here: to have the row written back takes half as long as all the rest.
            return Job.new(id, **values), True

        return await self._database.write(step, then=then or {})

    # --- 3 send

    def requeue(
        self,
        id: int,
        attempt: int,
        reason: str,
        *,
        lost: bool = False,
        spared: bool = False,
        unsent: bool = False,
        held: int = 0,
    ) -> Future[Job | None]:
        """Back to Queued; to Killed where its end is wished; None if it has moved on.

        `unsent`: not if the client has told of it meanwhile, whatever its submit came to.
        `held`: a client has had this attempt, so that the next one has to be above it.
        """
        return self._change(
            "requeue",
            id=id,
            attempt=attempt,
            reason=reason,
            lost=int(lost),
            spared=int(spared),
            unsent=int(unsent),
            held=held,
        )

    def adopt(
        self, id: int, attempt: int, instance: str, start: str, client: str
    ) -> Future[Job | None]:
        """A Queued job whose later attempt a client has: it was sent after the backup was made,
        from which this database comes; None if that is not so."""
        return self._change(
            "adopt",
            id=id,
            attempt=attempt,
            instance=instance,
            start=start,
            client=client,
            reason="a client has it since before the restore",
        )

    # --- 4 run

    def observe(
        self,
        id: int,
        attempt: int,
        instance: str,
        payload: int,
        status: Status,
        unless: Callable[[], bool],
    ) -> Future[Job | None]:
        """A client says that it holds, or runs, this attempt; None if that is no news, or by the
        time that it is written `unless` is true."""
        values = {
            "id": id,
            "attempt": attempt,
            "instance": instance,
            "payload": payload,
            "status": status.value,
            "now": self._clock(),
        }

        def step(connection: sqlite3.Connection) -> Job | None:
            return None if unless() else _changed(connection, "observe", **values)

        return self._database.write(step, soon=False)

    async def lose_sight(self, instance: str, reason: str) -> int:
        """What this client has, or may have, becomes Unknown; gives back how many jobs that are."""
        now = self._clock()

        def step(connection: sqlite3.Connection) -> int:
            values = {"instance": instance, "reason": reason, "now": now}
            return len(connection.execute(sql("lose_sight"), values).fetchall())

        return await self._database.write(step)

    def hand_over(self, id: int, attempt: int) -> Future[Job | None]:
        """The client of an Unknown job is gone: the Sender gives the job to another."""
        return self._database.write(
            lambda connection: _changed(connection, "hand_over", id=id, attempt=attempt)
        )

    async def keep_from_handover(self, instance: str) -> None:
        """This client is back: what was not handed over yet goes on there."""

        def step(connection: sqlite3.Connection) -> None:
            connection.execute(sql("keep_from_handover"), {"instance": instance})

        await self._database.write(step)

    def defer(
        self, id: int, attempt: int, instance: str, payload: int, reason: str
    ) -> Future[Job | None]:
        """It has ended, but its result cannot be fetched just now: Unknown."""
        return self._change(
            "defer", id=id, attempt=attempt, instance=instance, payload=payload, reason=reason
        )

    # --- 5 get

    def finish(
        self,
        id: int,
        attempt: int,
        end: End,
        *,
        payload: int | None = None,
        result: Result | None = None,
        lost: bool = False,
        unsent: bool = False,
        then: Mapping[str, Step[Any]] | None = None,
    ) -> Future[Job | None]:
        """The one end of a job, with its result in the same commit; None if it has ended.

        `unsent`: not if a client has told of it. `then` follows in the same transaction.
        """
        now = self._clock()

        def step(connection: sqlite3.Connection) -> Job | None:
            job = _changed(
                connection,
                "finish",
                id=id,
                attempt=attempt,
                payload=payload,
                now=now,
                lost=int(lost),
                unsent=int(unsent),
                status=end.status.value,
                exit_code=end.exit_code,
                fault=end.fault,
                reason=end.reason,
                stderr_tail=end.stderr_tail,
                wall_s=end.wall_s,
                cpu_s=end.cpu_s,
                max_rss=end.max_rss,
            )
            if job is not None and result is not None:
                values = {
                    "job": id,
                    "size": result.size,
                    "sha256": result.sha256,
                    "file": result.file,
                    "body": result.body,
                }
                connection.execute(sql("insert_result"), values)
            return job

        return self._database.write(step, then=then or {})

    # --- terminate and delete

    async def request_kill(self, id: int, user_id: int | None, reason: str) -> Job:
        """Keep the wish that a job ends; a Queued one ends at once.

        Raises:
            NotFound: there is none, or it is another user's.
            AlreadyEnded: it has.
        """
        now = self._clock()

        def step(connection: sqlite3.Connection) -> Job:
            job = find(connection, id, user_id)
            if job.status is Status.QUEUED:
                changed = _changed(connection, "kill_queued", id=id, now=now, reason=reason)
            elif job.status in ACTIVE:
                changed = _changed(connection, "request_kill", id=id)
            else:
                changed = None
            if changed is None:
                raise AlreadyEnded(job=id, ended_as=job.ended_as).about(id, job.status)
            return changed

        return await self._database.write(step)

    async def request_delete(self, id: int, user_id: int | None) -> Job:
        """Keep the wish that the files of a job are removed as soon as it has ended.

        Raises:
            NotFound: there is none, or it is another user's.
        """

        def step(connection: sqlite3.Connection) -> Job:
            find(connection, id, user_id)
            job = _changed(connection, "request_delete", id=id)
            assert job is not None  # noqa: S101 - it was found in the same transaction
            return job

        return await self._database.write(step)

    # --- 7 clean

    async def clean(self, id: int, reason: str) -> Job | None:
        """Cleaned: the record stays, its inputs and result go; None if that is not its turn."""
        now = self._clock()

        def step(connection: sqlite3.Connection) -> Job | None:
            job = _changed(connection, "clean", id=id, now=now, reason=reason)
            if job is not None:
                connection.execute(sql("delete_input"), {"job": id})
                connection.execute(sql("delete_result"), {"job": id})
            return job

        return await self._database.write(step)

    # ---

    def _change(self, name: str, **values: Any) -> Future[Job | None]:
        now = self._clock()
        return self._database.write(
            lambda connection: _changed(connection, name, now=now, **values)
        )
