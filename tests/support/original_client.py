"""A client of the original, told by a test what becomes of its payloads.

It answers byte for byte as the real one was recorded to (support.recorded), but for ids, and the
zips, which hold what the server sent and what the test says.
"""

import asyncio
import contextlib
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP

from aiohttp.test_utils import unused_port

from support.recorded import recorded

#: Where the recordings have an answer of a client: scenario, start of the request, which of them.
_WHERE: Mapping[str, Mapping[str, tuple[str, str, int]]] = {
    "v1": {
        "health": ("misc", "GET /health", 0),
        "load": ("misc", "GET /load", 0),
        "submitted": ("completed", "POST /submit", 0),
        "live": ("completed", "GET /retrieve/1", 0),
        "zip": ("completed", "GET /retrieve/1", -1),
        "invalid": ("no-run-sh", "GET /retrieve/1", 0),
        "unknown": ("misc", "GET /retrieve/99", 0),
    },
    "v2": {
        "health": ("misc", "GET /health", 0),
        "load": ("misc", "GET /load", 0),
        "submitted": ("completed", "POST /submit", 0),
        "live": ("completed", "GET /retrieve/1", 1),
        "zip": ("completed", "GET /retrieve/1", -1),
        "invalid": ("no-run-sh", "GET /retrieve/1", 0),
        "failed": ("failed", "GET /retrieve/1", -1),
        "unknown": ("misc", "GET /retrieve/99", 0),
        "partial": ("killed-running", "GET /retrieve_partial/1", 0),
        "killed": ("killed-running", "POST /kill/1", 0),
        "not killed": ("misc", "POST /kill/99", 0),
    },
}


@dataclass
class Payload:
    """One payload: what came with it, and how it is now."""

    id: int
    files: dict[str, bytes]
    #: The heads of its parts, as they came.
    heads: list[bytes]
    #: `live`, or how it has ended: `zip`, `failed`, `killed`, `invalid`, or a bare status code.
    state: str = "live"
    made: dict[str, bytes] = field(default_factory=dict)

    def packed(self) -> bytes:
        """All that lies in its working directory, as a zip."""
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in {**self.files, **self.made}.items():
                zipped.writestr(name, content)
        return target.getvalue()

    def ends(self, code: int = 0, **made: bytes) -> None:
        """run.sh has ended, and its exit trap has said so."""
        self.made = {".orchestrator.exit": b"%d\n" % code, **made}
        self.state = "zip"


class OriginalClient:
    """One of them, of version `v1` or `v2`."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.held: dict[int, Payload] = {}
        #: The payloads that came, in order.
        self.submits: asyncio.Queue[Payload] = asyncio.Queue()
        #: Every request line, in order.
        self.asked: list[str] = []
        self.kills: asyncio.Queue[int] = asyncio.Queue()
        #: Whether a submit is answered; else the connection is closed once it has come.
        self.answers = True
        #: What it answers to everything, in place of what it would: of a proxy, say.
        self.instead: bytes | None = None
        #: The same, where it is asked for a payload.
        self.proxied: bytes | None = None
        #: Whether it says of every payload that it runs.
        self.shows_all_live = False
        #: Set unless it is busy with a submit, and its answer has to wait.
        self.busy = asyncio.Event()
        self.busy.set()
        #: Whether it answers 503 where it is asked for its load.
        self.fails_load = False
        #: Whether it knows nothing of a payload any more once it has shown that there is a zip.
        self.forgets_once_shown = False
        self._next = 1
        self._old: dict[int, bytes] = {}
        self._port = unused_port()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: list[tuple[re.Pattern[str], asyncio.Future[None]]] = []

    @property
    def base(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    # --- its life

    async def appear(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def vanish(self) -> None:
        """Answer nobody."""
        if self._server is not None:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def start_again(self, *, old_folders: bool) -> None:
        """As after a kill: its ids begin at 1, and nobody knows the former payloads. Where their
        folders are there yet, what was packed in them is given out for the new ones."""
        await self.vanish()
        self._old = {id: p.packed() for id, p in self.held.items()} if old_folders else {}
        self.held = {}
        self._next = 1
        await self.appear()

    async def seen(self, pattern: str) -> None:
        """Wait for a request that begins so and comes from now on."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((re.compile(pattern), future))
        await future

    # --- what it answers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while answer := await self._hear(reader):
                    writer.write(answer)
                    await writer.drain()
        except asyncio.CancelledError:
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _hear(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        start, _, rest = head.partition(b"\r\n")
        message = BytesParser(policy=HTTP).parsebytes(rest, headersonly=True)
        body = await reader.readexactly(int(message.get("Content-Length", "0")))
        line = start.decode().removesuffix(" HTTP/1.1")
        self.asked.append(line)
        for pattern, future in self._waiting:
            if pattern.match(line) and not future.done():
                future.set_result(None)
        if self.instead is not None:
            return self.instead
        if line == "POST /submit":
            answer = self._take(message["Content-Type"], body)
            await self.busy.wait()
            return answer
        if line == "GET /load" and self.fails_load:
            return b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
        if match := re.fullmatch(r"(GET /retrieve|GET /retrieve_partial|POST /kill)/(\d+)", line):
            return self._about(match[1], int(match[2]))
        named = {"GET /health": "health", "GET /load": "load"}.get(line)
        return (
            self._recorded(named)
            if named
            else b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
        )

    def _take(self, content_type: str, body: bytes) -> bytes:
        payload = Payload(self._next, *split(content_type, body))
        self._next += 1
        self.held[payload.id] = payload
        self.submits.put_nowait(payload)
        if not self.answers:
            return b""
        echo = {name: list(content) for name, content in payload.files.items()}
        shown = json.dumps(echo, separators=(",", ":"))
        text = self._recorded("submitted").partition(b"\r\n\r\n")[2].decode()
        text = re.sub(
            r'"id":1,"input":\{.*?\]\}', lambda _: f'"id":{payload.id},"input":{shown}', text
        )
        return self._recorded("submitted", text.encode())

    def _about(self, what: str, id: int) -> bytes:
        payload = self.held.get(id)
        if self.proxied is not None:
            return self.proxied
        if self.shows_all_live:
            return self._recorded("live", id=id)
        if self.version == "v1" and what != "GET /retrieve":
            return self._recorded("unknown")
        if payload is None:
            return self._recorded("not killed" if what == "POST /kill" else "unknown")
        if what == "POST /kill":
            self.kills.put_nowait(id)
            return self._recorded("killed")
        if what == "GET /retrieve_partial":
            return self._recorded("partial", payload.packed())
        if payload.state == "zip" and self.forgets_once_shown:
            del self.held[id]
        if payload.state == "zip":
            return self._recorded("zip", self._old.get(id) or payload.packed())
        if payload.state.isdigit():
            return f"HTTP/1.1 {payload.state} Such\r\ncontent-length: 0\r\n\r\n".encode()
        if self.version == "v1" or payload.state == "invalid":
            return self._recorded(payload.state, id=id)
        known = "failed" if payload.state == "killed" else payload.state
        return self._recorded(known, id=id).replace(
            b'"Failed"', b'"Killed"' if payload.state == "killed" else b'"Failed"'
        )

    def _recorded(self, what: str, body: bytes | None = None, id: int | None = None) -> bytes:
        """An answer as it was recorded, with another body or another id in it."""
        scenario, start, which = _WHERE[self.version][what]
        found = [
            e for e in recorded(self.version, scenario).of("server-client")
            if e.start.startswith(start + " ")
        ][which]  # fmt: skip
        answer = found.answer
        assert answer is not None
        content = answer.body if body is None else body
        if id is not None:
            content = re.sub(rb'"id":\d+', b'"id":%d' % id, content, count=1)
            content = re.sub(rb"client/\d+", b"client/%d" % id, content)
        reason = {200: "OK", 202: "Accepted", 400: "Bad Request", 404: "Not Found"}
        head = [f"HTTP/1.1 {answer.status} {reason[answer.status]}"]
        for name, value in answer.headers.items():
            value = str(len(content)) if name.lower() == "content-length" else value
            head.append(f"{name}: {value}")
        return "\r\n".join((*head, "", "")).encode() + content


def split(content_type: str, body: bytes) -> tuple[dict[str, bytes], list[bytes]]:
    """The files of a multipart body by their `filename`, as the original takes it, and the heads
    of its parts."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    files, heads = {}, []
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        match = re.search(rb'filename="((?:[^"\\]|\\.)*)"', head)
        assert match, head
        files[match[1].decode()] = content.removesuffix(b"\r\n")
        heads.append(head)
    return files, heads


@contextlib.asynccontextmanager
async def original_client(version: str) -> AsyncIterator[OriginalClient]:
    """One that answers."""
    own = OriginalClient(version)
    await own.appear()
    try:
        yield own
    finally:
        await own.vanish()
