"""A server that only receives uploads, and a caller that sends it any bytes at all."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from orchestrator_shared.answers import errors_become_answers
from orchestrator_shared.protocol import INLINE_LIMIT
from orchestrator_shared.uploads import Upload, receive_upload
from support.portal import Answer

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(disposition: bytes, content: bytes = b"") -> bytes:
    """One part: what stands behind `Content-Disposition: form-data`, and its content."""
    return (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data".encode()
        + disposition
        + b"\r\n\r\n"
        + content
        + b"\r\n"
    )


def file_part(name: str, content: bytes = b"") -> bytes:
    """A file, its name quoted as it is."""
    return part(f'; name="file"; filename="{name}"'.encode(), content)


def field_part(name: str, value: bytes) -> bytes:
    """A text field."""
    return part(f'; name="{name}"'.encode(), value)


def multipart(*parts: bytes) -> bytes:
    """A whole body."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@dataclass
class Receiving:
    """What the server has received, and how to send to it."""

    folder: Path
    host: str = ""
    port: int = 0
    uploads: list[Upload] = field(default_factory=list)
    #: What the handler raised.
    errors: list[BaseException] = field(default_factory=list)
    #: Set when a handler has ended, however.
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def left(self) -> list[Path]:
        """What lies in its folder."""
        return list(self.folder.iterdir()) if self.folder.exists() else []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own."""
        return await asyncio.open_connection(self.host, self.port)

    async def send(self, *pieces: bytes) -> Answer:
        """Send bytes as they are, piece by piece, and read what is answered."""
        reader, writer = await self.connect()
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                # The server turns in the same loop: it takes this piece before the next one goes.
                await asyncio.sleep(0)
            return await read_answer(reader)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def post(self, body: bytes, content_type: str = FORM) -> Answer:
        """Send a body in one go."""
        return await self.send(head(len(body), content_type), body)

    async def receive(self, *parts: bytes) -> Upload:
        """Send parts that are taken."""
        answer = await self.post(multipart(*parts))
        assert answer.status == 200, answer
        return self.uploads[-1]


def head(length: int | None, content_type: str = FORM, *more: str) -> bytes:
    """The head of a request; without a length its body is chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = (
        "POST / HTTP/1.1",
        "Host: here",
        "Connection: close",
        f"Content-Type: {content_type}",
        size,
    )
    return "\r\n".join((*lines, *more, "", "")).encode(errors="surrogateescape")


def chunked(pieces: Iterable[bytes]) -> Iterable[bytes]:
    """The pieces as a chunked body."""
    for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer up to the end of the connection."""
    top, _, body = (await reader.read()).partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, body)


@contextlib.asynccontextmanager
async def receiving(
    tmp_path: Path, *, limit: int = sys.maxsize, inline_limit: int = INLINE_LIMIT
) -> AsyncIterator[Receiving]:
    """A server whose uploads lie below `tmp_path / "uploads"`."""
    state = Receiving(tmp_path / "uploads")

    async def receive(request: web.Request) -> web.Response:
        try:
            upload = await receive_upload(request, state.folder, limit, inline_limit)
        except BaseException as error:
            state.errors.append(error)
            raise
        finally:
            state.ended.set()
        state.uploads.append(upload)
        return web.Response(text=json.dumps(upload.manifest()))

    app = web.Application(middlewares=[errors_become_answers])
    app.router.add_post("/", receive)
    server = TestServer(app)
    await server.start_server(shutdown_timeout=1)
    state.host, state.port = server.host, server.port or 0
    try:
        yield state
    finally:
        await server.close()
