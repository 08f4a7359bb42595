"""Quota and fairness: which jobs go now, and to which client. Decided in one transaction."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator_server.store.job import Job
from orchestrator_server.store.queries import sql


@dataclass(frozen=True, slots=True)
class Offer:
    """A client that takes jobs: its slots, and how many of them others have taken."""

    instance: str
    start: str
    client: str
    slots: int
    others: int
    load: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The quotas of a service, in jobs."""

    runs_per_user: int
    max_runs: int


def dispatch(
    connection: sqlite3.Connection,
    service: str,
    limits: Limits,
    offers: Sequence[Offer],
    reachable: frozenset[str],
    now: float,
) -> list[Job]:
    """Move as many Queued jobs of a service to Processing as quotas and free slots allow.

    First go the jobs whose client is gone: they had their turn before. Then a free slot goes to
    the user with the fewest active jobs in the service, among equals to the one served longest
    ago, and to that user's oldest job. The client with the most free slots gets it, among equals
    the one with the lowest load. `reachable` are the clients that answer: jobs at others count in
    no max_runs. Each decision reads a few index entries, however long the queue is.
    """
    taken = {row["instance"]: row["active"] for row in connection.execute(sql("client_loads"))}
    free = {o.instance: o.slots - o.others - taken.get(o.instance, 0) for o in offers}
    active = sum(
        row["active"]
        for row in connection.execute(sql("service_loads"), {"service": service})
        if row["instance"] in reachable
    )
    sent: list[Job] = []
    while active < limits.max_runs:
        best = max(offers, key=lambda offer: (free[offer.instance], -offer.load), default=None)
        if best is None or free[best.instance] <= 0:
            break
        job, reason = _gone(connection, service)
        if job is None:
            job = _next(connection, service, limits.runs_per_user)
        if job is None:
            break
        row = connection.execute(
            sql("process"),
            {
                "id": job,
                "reason": reason,
                "instance": best.instance,
                "start": best.start,
                "client": best.client,
                "now": now,
            },
        ).fetchone()
        sent.append(Job.from_row(row))
        free[best.instance] -= 1
        active += 1
    return sent


def _gone(connection: sqlite3.Connection, service: str) -> tuple[int | None, str | None]:
    """A job whose client is gone, and why it goes to another; its user's count stays as it is."""
    row = connection.execute(sql("next_handover"), {"service": service}).fetchone()
    return (row["id"], f"handed over: {row['client']} is gone") if row else (None, None)


def _next(connection: sqlite3.Connection, service: str, runs_per_user: int) -> int | None:
    """The job whose turn it is; None if every user with Queued jobs is at the limit."""
    user = connection.execute(
        sql("next_user"), {"service": service, "runs_per_user": runs_per_user}
    ).fetchone()
    if user is None:
        return None
    job: int = connection.execute(
        sql("next_job"), {"service": service, "user_id": user["user_id"]}
    ).fetchone()["id"]
    return job
