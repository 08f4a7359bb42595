"""A TCP proxy between server and client that does harm by rule."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

from support.faults import Message, Refuse, Rule

CHUNK = 64 * 1024
#: How long the last bytes of a connection may take (seconds).
CLOSE_PATIENCE = 0.5
#: Answers that have no body, whatever their headers say.
_NO_BODY = (101, 204, 304)


class _CutNow(Exception):
    """A rule ends the connection."""


class _Way:
    """One direction of a link: the Outlet of its faults."""

    def __init__(self, link: "Link", writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._writer = writer

    async def send(self, data: bytes) -> None:
        if self._link.silent:
            await asyncio.Event().wait()
        if data:
            self._writer.write(data)
            await self._writer.drain()

    def cut(self) -> NoReturn:
        raise _CutNow

    async def stall(self) -> NoReturn:
        self._link.silent = True
        await asyncio.Event().wait()
        raise AssertionError


class Link:
    """A connection of the server, and the one to the client behind it."""

    def __init__(
        self,
        rules: list[Rule],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        #: Nothing goes through any more, not even the news that a side has closed.
        self.silent = False
        #: Whether it is a stream by now.
        self.upgraded = False
        self._rules = rules
        self._server, self._client = server, client
        self._asked: asyncio.Queue[tuple[str, str, Mapping[str, str]]] = asyncio.Queue()
        #: What passes on; None before and after.
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Pass on what comes until a side closes; then both are closed."""
        self._task = asyncio.current_task()
        ways = [asyncio.create_task(self._requests()), asyncio.create_task(self._answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self.silent:
                await asyncio.Event().wait()
        finally:
            # It ends by itself from here on: cut off once more, it would close only one side.
            self._task = None
            for way in ways:
                way.cancel()
            outcomes = await asyncio.gather(*ways, return_exceptions=True)
            await asyncio.gather(*(_close(writer) for _, writer in (self._server, self._client)))
            expected = (_CutNow, OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not isinstance(outcome, expected):
                    raise outcome

    def cut(self) -> None:
        """End it now."""
        if self._task is not None:
            self._task.cancel()

    def inject(self, message: Message) -> None:
        """Say a frame once more, between two others."""
        (self._client if message.to_client else self._server)[1].write(message.raw)

    async def _pass(
        self, way: _Way, message: Message, pieces: AsyncIterator[bytes], head: bytes
    ) -> None:
        rule = next((rule for rule in self._rules if rule.take(message)), None)
        if rule is None:
            await way.send(head)
            async for piece in pieces:
                await way.send(piece)
            return
        body = b""
        if not isinstance(rule.fault, Refuse):
            body = b"".join([piece async for piece in pieces])
        whole = Message(message.kind, message.info, head + body, 0, head + body, message.to_client)
        await rule.fault.apply(whole, way)

    async def _requests(self) -> None:
        reader, way = self._server[0], _Way(self, self._client[1])
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, headers = _parse_head(head)
            method, path = first.split()[:2]
            kind = f"{method} /{path.split('/')[1]}"
            self._asked.put_nowait((kind, method, headers))
            await self._pass(way, Message(kind, headers), _body(reader, headers), head)
            if kind == "GET /stream":
                break
        await self._frames(reader, way, to_client=True)

    async def _answers(self) -> None:
        reader, way = self._client[0], _Way(self, self._server[1])
        while not self.upgraded:
            head = await reader.readuntil(b"\r\n\r\n")
            first, headers = _parse_head(head)
            status = int(first.split()[1])
            kind, method, asked = await self._asked.get()
            message = Message(f"{kind} answer", {**asked, **headers}, to_client=False)
            empty = method == "HEAD" or status in _NO_BODY
            await self._pass(way, message, _body(reader, {} if empty else headers), head)
            self.upgraded = status == 101
        await self._frames(reader, way, to_client=False)

    async def _frames(self, reader: asyncio.StreamReader, way: _Way, *, to_client: bool) -> None:
        while True:
            message = await _read_frame(reader, to_client=to_client)
            rule = next((rule for rule in self._rules if rule.take(message)), None)
            if rule is None:
                await way.send(message.raw)
            else:
                await rule.fault.apply(message, way)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Let go of a connection, of one whose other side reads nothing any more too."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_PATIENCE):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":")[::2] for line in lines)
    return first, {name.lower(): value.strip() for name, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        size = -1
        while size != 0:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
    left = int(headers.get("content-length", 0))
    while left > 0 and (piece := await reader.read(min(left, CHUNK))):
        left -= len(piece)
        yield piece


async def _read_frame(reader: asyncio.StreamReader, *, to_client: bool) -> Message:
    """A frame of a WebSocket (RFC 6455, 5.2), whole; ours are never fragmented."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length >= 126:
        more = await reader.readexactly(2 if length == 126 else 8)
        length = int.from_bytes(more)
        head += more
    mask = await reader.readexactly(4) if head[1] & 0x80 else b""
    masked = await reader.readexactly(length)
    content = masked
    if mask:
        whole = (mask * (length // 4 + 1))[:length]
        content = (int.from_bytes(masked) ^ int.from_bytes(whole)).to_bytes(length)
    info: dict[str, Any] = {"type": "control"}
    if head[0] & 0x0F == 2:
        info = json.loads(content[4:].partition(b"\n")[0])
    begin = len(head) + len(mask)
    return Message(info["type"], info, head + mask + masked, begin, content, to_client)


class Proxy:
    """What the server takes for one of its clients."""

    def __init__(self, target: int = 0) -> None:
        #: The port of the client behind it: of new connections, it may change.
        self.target = target
        self.rules: list[Rule] = []
        self.port = 0
        #: New connections are accepted, and nothing ever comes of them.
        self.silent = False
        self._listener: asyncio.Server | None = None
        self._links: dict[Link, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Its base URL, as the server knows the client."""
        return f"http://127.0.0.1:{self.port}"

    async def up(self) -> None:
        """Listen, on the same port as before."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuse new connections, and end those that there are."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End all connections."""
        for link in list(self._links):
            link.cut()

    def stall(self) -> None:
        """Let nothing through any more: on connections that there are, and new ones."""
        self.silent = True
        for link in self._links:
            link.silent = True

    def unstall(self) -> None:
        """New connections go through again; those that were silent end."""
        self.silent = False
        self.cut()

    def add(self, *rules: Rule) -> None:
        """From now on these hold; the first that fits counts."""
        self.rules[:0] = rules

    def inject(self, message: Message) -> None:
        """Say a frame once more, on the stream that is open now."""
        next(link for link in reversed(self._links) if link.upgraded).inject(message)

    async def replay(self, request: Message) -> bytes:
        """Make a request once more, on a connection of its own; gives the answer's first line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(request.raw)
        try:
            async with asyncio.timeout(10):
                return await reader.readline()
        finally:
            await _close(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            try:
                client = await asyncio.open_connection("127.0.0.1", self.target, limit=2**20)
            except OSError:
                await _close(writer)
                return
            if self._listener is None:
                await asyncio.gather(_close(writer), _close(client[1]))
                return
            link = Link(self.rules, (reader, writer), client)
            link.silent = self.silent
            self._links[link] = None
            with contextlib.suppress(asyncio.CancelledError):
                await link.run()
            del self._links[link]
        finally:
            self._tasks.discard(task)
