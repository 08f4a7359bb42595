"""What the original answers to a submit is 3.6 times the upload: only its beginning is read."""

import asyncio
import io
import re
import zipfile
from pathlib import Path

import aiohttp

from support.portal import Portal
from support.processes import Program

MB = 2**20
SIZE = 300 * MB
#: The most that the server may ever have had in memory (bytes).
RSS_MOST = 120 * MB


class Echo:
    """A client of version 2 that tells every byte that it got as a number, as the real one does."""

    def __init__(self) -> None:
        self.got = 0
        self.echoed = 0
        self.marker = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await self._take(reader, int(length[1]) if length else 0)
                await self._answer(head.split()[1].decode(), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader, length: int) -> None:
        start = b""
        while length and (chunk := await reader.read(min(length, MB))):
            start = (start + chunk)[:4096] if len(start) < 4096 else start
            length -= len(chunk)
            self.got += len(chunk)
        if match := re.search(rb'\{"server": .*?\}', start):
            self.marker = match[0]

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        kind, body = "application/json", b'{"status":"ok","database":"ok"}'
        if path == "/load":
            body = b"0.0"
        elif path == "/retrieve/1":
            kind, packed = "application/zip", io.BytesIO()
            with zipfile.ZipFile(packed, "w") as zipped:
                zipped.writestr(".orchestrator.job", self.marker)
            body = packed.getvalue()
        elif path == "/submit":
            numbers = b"137," * (MB // 4)
            count = int(3.6 * SIZE) // MB
            start, end = b'{"id":1,"input":{"large":[', b'0]},"status":"Prepared"}'
            length = len(start) + count * len(numbers) + len(end)
            writer.write(_head(kind, length) + start)
            for _ in range(count):
                writer.write(numbers)
                await writer.drain()
                self.echoed += len(numbers)
            writer.write(end)
            return
        elif path not in ("/health",):
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        writer.write(_head(kind, len(body)) + body)
        await writer.drain()


def _head(kind: str, length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


async def test_the_echo_of_300_mb_is_not_read(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """The id is taken from its beginning; the rest is neither kept nor waited for."""
    echo = Echo()
    listening = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server = Program(
        "orch-server",
        tmp_path / "server",
        {"SERVICE_EXAMPLE_URL": f"http://127.0.0.1:{port}/"},
    )
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(SIZE)
    try:
        await server.start()
        with large.open("rb") as content:
            form = aiohttp.FormData()
            form.add_field("file", content, filename="large")
            form.add_field("file", b"true", filename="run.sh")
            form.add_field("user_id", "1")
            form.add_field("service", "example")
            async with session.post(f"{server.url}/upload", data=form) as answer:
                id = (await answer.json())["id"]
        record = await Portal(server.url, session).ended(id)

        assert (record["status"], record["dest_id"]) == ("Completed", "1")
        assert echo.got > SIZE
        assert echo.echoed < SIZE / 2
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak
        assert int(peak[1]) * 1024 <= RSS_MOST
    finally:
        await server.close()
        listening.close()
