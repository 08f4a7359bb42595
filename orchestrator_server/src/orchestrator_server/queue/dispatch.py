"""Quota and fairness: which jobs go now, and to which client. Decided in one transaction."""

import sqlite3
from collections.abc import Sequence

from msgspec import Struct

from orchestrator_server.store.job import Job
from orchestrator_server.store.queries import sql


class Offer(Struct, frozen=True):
    """A client that takes jobs: its slots, and how many of them others have taken."""

    instance: str
    start: str
    client: str
    slots: int
    others: int
    load: float


class Limits(Struct, frozen=True):
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
    free = {offer.instance: offer.slots - offer.others for offer in offers}
    active = 0
    for instance, its_service, jobs in connection.execute(sql("loads")):
        if instance in free:
            free[instance] -= jobs
        if its_service == service and instance in reachable:
            active += jobs
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
    values = {"service": service, "runs_per_user": runs_per_user}
    row = connection.execute(sql("next_job"), values).fetchone()
    return row["id"] if row else None
