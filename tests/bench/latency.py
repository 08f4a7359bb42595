"""One job of `echo` on an idle system, against the same work done by hand."""

import json
import os
import time
import zipfile
from pathlib import Path

from bench.harness import Case, Outcome, median, milliseconds, quantile, scaled
from bench.portal import Connection, upload_request
from support.processes import programs

ROUNDS = 200
GOAL = 2.5
SPREAD = 1.6
SCRIPT = b"echo done\n"
UPLOAD = upload_request("/upload", SCRIPT)


async def _by_the_system(portal: Connection) -> float:
    """From the first byte of the upload to the last byte of the result (seconds)."""
    begin = time.perf_counter()
    id = json.loads(await portal.send(UPLOAD))["id"]
    record = json.loads(await portal.get(f"/jobs/{id}?wait=60"))
    result = await portal.get(f"/download/{id}")
    passed = time.perf_counter() - begin
    if record["status"] != "Completed" or not result.startswith(b"PK"):
        raise RuntimeError(f"job {id} is {record['status']}")
    return passed


def _by_hand(folder: Path) -> float:
    """Write its files with fsync, run bash, zip the directory, read it back (seconds)."""
    begin = time.perf_counter()
    folder.mkdir()
    with open(folder / "run.sh", "wb") as file:
        file.write(SCRIPT)
        file.flush()
        os.fsync(file.fileno())
    out = [(os.POSIX_SPAWN_OPEN, 1, str(folder / "stdout"), os.O_WRONLY | os.O_CREAT, 0o600)]
    pid = os.posix_spawn("/bin/bash", ["bash", str(folder / "run.sh")], {}, file_actions=out)
    os.waitpid(pid, 0)
    packed = folder.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in folder.iterdir():
            zipped.write(path, path.name)
    packed.read_bytes()
    return time.perf_counter() - begin


async def run(root: Path, size: float) -> Outcome:
    """Both in turns, so that both meet the same neighbours."""
    rounds = scaled(ROUNDS, size)
    measured, floors = [], []
    async with programs(root) as (server, _):
        portal = await Connection.open(server.port)
        for _ in range(5):
            await _by_the_system(portal)
        for n in range(rounds):
            measured.append(await _by_the_system(portal))
            floors.append(_by_hand(root / f"hand{n}"))
        await portal.close()
    p50, p95, floor = median(measured), quantile(measured, 0.95), median(floors)
    return Outcome(
        figure=f"{milliseconds(p50)} (p50), {milliseconds(p95)} (p95)",
        floor=milliseconds(floor),
        ratio=f"{p50 / floor:.1f} x, p95 {p95 / p50:.1f} x p50",
        goal=f"≤ {GOAL} x, p95 ≤ {SPREAD} x p50",
        met=p50 <= GOAL * floor and p95 <= SPREAD * p50,
        values={"p50_s": p50, "p95_s": p95, "floor_s": floor, "rounds": rounds},
    )


CASE = Case(
    "latency",
    "An idle system and one job of `echo`: from the first byte of the upload to the last byte of "
    "the result. Floor: one process writes its files with fsync, runs bash, zips, reads back.",
    run,
)
