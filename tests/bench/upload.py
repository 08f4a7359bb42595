"""Uploads per second, each durable when answered, against a handler with nothing behind it."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.harness import Case, Outcome, median, scaled
from support.processes import programs

UPLOADS = 3000
CONNECTIONS = 16
ROUNDS = 3
GOAL = 0.25
SCRIPT = b"#" * 294 + b"\ntrue\n"
_BOUNDARY = "bench"


def _request(path: str) -> bytes:
    """One upload, ready to be sent: nobody is to measure how it is made."""
    parts = {'"user_id"': b"1", '"service"': b"example", '"file"; filename="run.sh"': SCRIPT}
    begin = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
    body = b"".join(
        begin + name.encode() + b"\r\n\r\n" + value + b"\r\n" for name, value in parts.items()
    )
    body += f"--{_BOUNDARY}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n\r\n"
    )
    return head.encode() + body


async def _rate(port: int, path: str, uploads: int) -> float:
    """Uploads per second over kept connections."""
    request, left = _request(path), uploads

    async def connection() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 201 " not in head[:20]:
                raise RuntimeError(head.decode())
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()
        await writer.wait_closed()

    begin = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return uploads / (time.perf_counter() - begin)


@contextlib.asynccontextmanager
async def _floors(folder: Path) -> AsyncIterator[int]:
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.bare", str(folder)),
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def run(root: Path, size: float) -> Outcome:
    """In turns; the client is stopped, so that no job runs beside."""
    uploads = scaled(UPLOADS, size / ROUNDS, CONNECTIONS)
    rates: dict[str, list[float]] = {"/upload": [], "/bare": [], "/fsynced": []}
    async with programs(root) as (server, clients), _floors(root / "fsynced") as floors:
        await clients[0].stop()
        for path in rates:
            await _rate(server.port if path == "/upload" else floors, path, CONNECTIONS)
        for _ in range(ROUNDS):
            for path, found in rates.items():
                found.append(
                    await _rate(server.port if path == "/upload" else floors, path, uploads)
                )
    rate, bare, fsynced = (median(found) for found in rates.values())
    return Outcome(
        figure=f"{rate:.0f} uploads/s",
        floor=f"{bare:.0f}/s bare, {fsynced:.0f}/s with a file fsynced",
        ratio=f"{rate / bare:.2f}, {rate / fsynced:.2f}",
        goal=f"≥ {GOAL}, > 1",
        met=rate >= GOAL * bare and rate > fsynced,
        values={"uploads_per_s": rate, "bare_per_s": bare, "fsynced_per_s": fsynced},
    )


CASE = Case(
    "upload",
    "3,000 uploads of a 300-byte run.sh over 16 kept connections, each durable when answered. "
    "Floor: a handler that reads the body and answers JSON; beside it one that writes and fsyncs.",
    run,
)
