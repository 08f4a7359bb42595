"""The streams to servers: each is told of its payloads, whole states with a rising number."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from orchestrator_client.config import Config
from orchestrator_client.identity import Identity
from orchestrator_client.load import Load
from orchestrator_client.payloads import Payload, Payloads
from orchestrator_client.runner import Runner
from orchestrator_client.standing import Standing
from orchestrator_shared import __version__
from orchestrator_shared.errands import Errands
from orchestrator_shared.frames import pack_frame
from orchestrator_shared.messages import Heartbeat, Hello, Listed, Message, State
from orchestrator_shared.protocol import HEARTBEAT_INTERVAL, INLINE_LIMIT, PROTOCOL

log = logging.getLogger(__name__)

#: How long a server may take (seconds) to agree that its stream is closed.
CLOSE_PATIENCE: Final = 1.0


class Stream:
    """One server's stream. What is to be said gathers here; one task says it."""

    def __init__(self, socket: web.WebSocketResponse, server: str, streams: "Streams") -> None:
        self.server = server
        self._socket = socket
        self._streams = streams
        self._changed: dict[int, None] = {}
        self._messages: list[Message] = []
        self._wake = asyncio.Event()
        self._seq = 0
        #: What the last heartbeat told, but for the load.
        self._told: dict[str, Any] = {}
        self._next_beat = 0.0
        self._list_asked = False

    def tell(self, payload: Payload) -> None:
        """Tell of a payload, as it will be when its turn comes."""
        self._changed[payload.id] = None
        self._wake.set()

    def say(self, message: Message) -> None:
        """Say this, after what has gathered before."""
        self._messages.append(message)
        self._wake.set()

    def tell_all(self) -> None:
        """Tell of every payload again."""
        self._list_asked = True
        self._wake.set()

    def look(self) -> None:
        """Something has changed that the heartbeat tells."""
        self._wake.set()

    async def run(self) -> None:
        """Say who this is, tell of every payload, then of what changes, until cut off."""
        streams = self._streams
        hello = Hello(
            protocol=PROTOCOL,
            version=__version__,
            instance=streams.identity.instance,
            start=streams.identity.start,
            service=streams.config.service,
            slots=streams.config.slots,
            kill_grace=streams.config.kill_grace,
        )
        with contextlib.suppress(ConnectionError):
            await self._send(hello)
            await self._beat()
            await self._list()
            while True:
                await self._say_all()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next_beat):
                        await self._wake.wait()

    async def _list(self) -> None:
        for payload in self._streams.payloads.of_server(self.server):
            await self._send_state(payload.id)
        await self._send(Listed())

    async def _say_all(self) -> None:
        self._wake.clear()
        messages, self._messages = self._messages, []
        changed, self._changed = self._changed, {}
        for id in changed:
            await self._send_state(id)
        for message in messages:
            await self._send(message)
        if self._list_asked:
            self._list_asked = False
            await self._list()
        due = asyncio.get_running_loop().time() >= self._next_beat
        if due or self._told != self._streams.fares(self.server):
            await self._beat()

    async def _beat(self) -> None:
        self._next_beat = asyncio.get_running_loop().time() + HEARTBEAT_INTERVAL
        self._told = self._streams.fares(self.server)
        await self._send(Heartbeat(**self._told, cpu_load=self._streams.load.percent()))

    async def _send_state(self, id: int) -> None:
        """The state as it is now; a small result goes along, which saves the server a request."""
        payload = self._streams.payloads.get(id)
        workdir = self._streams.runner.workdir(id)
        body = b""
        if payload.result_size is not None and payload.result_size <= INLINE_LIMIT:
            # A few kilobytes that were written a moment ago: not worth a thread.
            with contextlib.suppress(OSError):
                body = workdir.read_result()
        self._seq += 1
        await self._send(State(seq=self._seq, payload=payload.shown(workdir.job)), body)

    async def _send(self, message: Message, body: bytes = b"") -> None:
        await self._socket.send_bytes(pack_frame(message, body))


class Streams:
    """All streams; a server has one at most, the newest."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        payloads: Payloads,
        runner: Runner,
        load: Load,
        standing: Standing,
    ) -> None:
        self.config = config
        self.identity = identity
        self.payloads = payloads
        self.runner = runner
        self.load = load
        self.standing = standing
        self._streams: dict[str, tuple[Stream, web.WebSocketResponse]] = {}
        self._errands = Errands("a stream could not be closed")

    def fares(self, server: str) -> dict[str, Any]:
        """What a heartbeat tells a server, but for the load."""
        stuck = len(self.runner.stuck)
        return {
            "others": self.payloads.active(but_of=server) + stuck,
            "stuck": stuck,
            "state": self.standing.state,
            "why": self.standing.why,
        }

    @property
    def servers(self) -> list[str]:
        """Whose streams are there."""
        return list(self._streams)

    def look(self) -> None:
        """Something has changed that heartbeats tell."""
        for stream, _ in self._streams.values():
            stream.look()

    def publish(self, payload: Payload) -> None:
        """A payload has changed: tell its server, and the others how busy it makes us."""
        for server, (stream, _) in self._streams.items():
            if server == payload.server and payload.job is not None:
                stream.tell(payload)
            else:
                stream.look()

    async def serve(
        self, socket: web.WebSocketResponse, server: str, hear: Callable[[Stream, bytes], None]
    ) -> None:
        """Serve one stream until it ends; `hear` gets what the server says."""
        stream = Stream(socket, server, self)
        former = self._streams.get(server)
        self._streams[server] = (stream, socket)
        if former is not None:
            # Beside this one: whoever was there may not answer any more.
            self._errands.run(close_stream(former[1]))
        async with asyncio.TaskGroup() as group:
            talking = group.create_task(stream.run(), name=f"stream {server}")
            try:
                async for message in socket:
                    if isinstance(message.data, bytes):
                        hear(stream, message.data)
            finally:
                if self._streams.get(server, (None,))[0] is stream:
                    del self._streams[server]
                talking.cancel()

    async def close(self) -> None:
        """End all streams."""
        await asyncio.gather(*(close_stream(socket) for _, socket in self._streams.values()))
        await self._errands.close(CLOSE_PATIENCE)


async def close_stream(socket: web.WebSocketResponse) -> None:
    """End a stream; a server that does not agree in time is not waited for."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(CLOSE_PATIENCE):
            await socket.close()
