"""One result of 2 GB: how fast it passes, and how much memory that takes."""

import asyncio
import hashlib
import os
import re
import socket
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import aiohttp
from isal import isal_zlib

from bench.harness import Case, Outcome, scaled
from support.portal import Portal
from support.processes import Program, programs

BYTES = 2_000_000_000
GOAL = 0.5
RSS_GOAL = 120 * 2**20
CHUNK = 1 << 20
PDB = Path(__file__).parents[2] / "examples" / "interface" / "2oob.pdb"
#: Half of it is the text of a PDB entry, over and over, half of it random.
SCRIPT = """
(while cat 2oob.pdb; do :; done) 2> /dev/null | head -c {half} > text.pdb
head -c {half} /dev/urandom > noise
"""


def _peak_rss(program: Program) -> int:
    """The most memory that it ever had resident (bytes): VmHWM of proc_pid_status(5)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{program.pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


async def _by_the_system(root: Path, half: int) -> tuple[float, int]:
    """Seconds from the exit of run.sh to the end of the download; the larger peak (bytes)."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        programs(root) as (server, (client,)),
    ):
        portal = Portal(server.url, session)
        script = SCRIPT.format(half=half).encode()
        id = await portal.upload({"run.sh": script, "2oob.pdb": PDB.read_bytes()})
        record = await portal.ended(id)
        if record["status"] != "Completed":
            raise RuntimeError(record["reason"])
        async with session.get(f"{server.url}/download/{id}") as answer:
            async for _ in answer.content.iter_chunked(CHUNK):
                pass
        end = time.time()
        exited = datetime.fromisoformat(record["started_at"]).timestamp() + record["wall_s"]
        return end - exited, max(_peak_rss(server), _peak_rss(client))


def _by_hand(root: Path, half: int) -> float:
    """Deflate and digest, write with fsync at each side, through two sockets in turn (seconds)."""
    text, noise, packed = root / "text", root / "noise", root / "packed"
    entry = PDB.read_bytes()
    text.write_bytes((entry * (half // len(entry) + 1))[:half])
    with open(noise, "wb") as file:
        for _ in range(half // CHUNK):
            file.write(os.urandom(CHUNK))
    begin = time.perf_counter()
    digest, deflate = hashlib.sha256(), isal_zlib.compressobj(2)
    with open(packed, "wb") as out, open(text, "rb") as texts, open(noise, "rb") as noises:
        while chunk := texts.read(CHUNK):
            _keep(out, digest, deflate.compress(chunk))
        _keep(out, digest, deflate.flush())
        while chunk := noises.read(CHUNK):
            _keep(out, digest, chunk)
        os.fsync(out.fileno())
    _pass_on(packed, root / "stored")
    _pass_on(root / "stored", None)
    return time.perf_counter() - begin


def _keep(out: BinaryIO, digest: "hashlib._Hash", chunk: bytes) -> None:
    out.write(chunk)
    digest.update(chunk)


def _pass_on(source: Path, target: Path | None) -> None:
    """Through a loopback socket, into a file that is durable, or to nobody."""

    def send() -> None:
        with listening.accept()[0] as connection, open(source, "rb") as file:
            connection.sendfile(file)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        sending = threading.Thread(target=send)
        sending.start()
        with (
            socket.create_connection(listening.getsockname()) as reading,
            open(target or os.devnull, "wb") as file,
        ):
            while chunk := reading.recv(CHUNK):
                file.write(chunk)
            if target is not None:
                os.fsync(file.fileno())
        sending.join()


async def run(root: Path, size: float) -> Outcome:
    """One after the other: each takes all that the machine has."""
    half = scaled(BYTES // 2, size, CHUNK)
    floor = 2 * half / await asyncio.to_thread(_by_hand, root, half)
    passed, peak = await _by_the_system(root, half)
    rate = 2 * half / passed
    return Outcome(
        figure=f"{rate / 1e6:.0f} MB/s, at most {peak / 2**20:.0f} MiB resident",
        floor=f"{floor / 1e6:.0f} MB/s",
        ratio=f"{rate / floor:.2f}",
        goal=f"≥ {GOAL}, ≤ {RSS_GOAL / 2**20:.0f} MiB",
        met=rate >= GOAL * floor and peak <= RSS_GOAL,
        values={"bytes_per_s": rate, "floor_bytes_per_s": floor, "peak_rss": peak},
    )


CASE = Case(
    "large",
    "One result of 2 GB, half PDB text, half random: from the exit of run.sh to the end of the "
    "portal's download; peak memory of either program. Floor: the text deflated, one SHA-256, one "
    "write with fsync at each side, and the same bytes through two loopback sockets in turn.",
    run,
)
