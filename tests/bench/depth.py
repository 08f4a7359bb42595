"""One decision of the queue, however long that is."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from bench.harness import Case, Outcome, median, scaled
from orchestrator_server.queue.dispatch import Limits, Offer, dispatch
from orchestrator_server.store.connection import connect, migrate

DEPTHS = (1_000, 10_000, 100_000, 1_000_000)
USERS = 1_000
ACTIVE = 100
ROUNDS = 300
GOAL = 1.5
INSERT = (
    "INSERT INTO jobs (user_id, service, status, folder, created_at, changed_at, input_bytes) "
    "VALUES (?, 'example', 'Queued', '', 0, 0, 0)"
)


def _filled(path: Path, depth: int) -> sqlite3.Connection:
    connection = connect(path)
    migrate(connection, path)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    connection.executemany(INSERT, ((n % USERS,) for n in range(depth + ACTIVE)))
    connection.execute("COMMIT")
    connection.execute("BEGIN")
    _decide(connection, ACTIVE)
    connection.execute("COMMIT")
    return connection


def _decide(connection: sqlite3.Connection, most: int) -> int:
    offer = Offer("instance", "start", "http://client", slots=ACTIVE + 1, others=0, load=0.0)
    limits = Limits(runs_per_user=5, max_runs=most)
    reachable = frozenset({"instance"})
    return len(dispatch(connection, "example", limits, [offer], reachable, time.time()))


def _times(connection: sqlite3.Connection, rounds: int) -> Iterator[float]:
    for _ in range(rounds):
        connection.execute("BEGIN")
        begin = time.perf_counter()
        sent = _decide(connection, ACTIVE + 1)
        passed = time.perf_counter() - begin
        connection.execute("ROLLBACK")
        if sent != 1:
            raise RuntimeError(f"{sent} jobs went")
        yield passed


async def run(root: Path, size: float) -> Outcome:
    """Each decision is undone, so that all meet the same queue."""
    found = {}
    for depth in (scaled(depth, size, USERS) for depth in DEPTHS):
        connection = _filled(root / f"{depth}.sqlite", depth)
        found[depth] = median(list(_times(connection, scaled(ROUNDS, size, 20))))
        connection.close()
    least, most = min(found), max(found)
    ratio = found[most] / found[least]
    return Outcome(
        figure=", ".join(f"{depth:,}: {s * 1e6:.0f} µs" for depth, s in found.items()),
        floor=f"{found[least] * 1e6:.0f} µs",
        ratio=f"{ratio:.2f}",
        goal=f"≤ {GOAL}",
        met=ratio <= GOAL,
        values={f"decision_at_{depth}_s": seconds for depth, seconds in found.items()},
    )


CASE = Case(
    "depth",
    "One decision of the queue with 1,000 to 1,000,000 Queued jobs of 1,000 users, 100 active. "
    "Floor: the same with 1,000.",
    run,
)
