"""A server's end of the stream of a client, as a test plays it."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import ClientWebSocketResponse

from orchestrator_shared.frames import unpack_frame
from orchestrator_shared.protocol import FRAME_LIMIT, H_PROTOCOL, H_SERVER, PROTOCOL
from support.frames import plain, raw_frame
from support.portal import Files

#: What a payload can end as.
ENDS = ("Completed", "Failed", "Invalid", "Killed")


@dataclass(frozen=True)
class Frame:
    """One message of a client: its type, its fields, and the bytes behind them."""

    kind: str
    header: dict[str, Any]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        """The payload that a state tells of; its status as text."""
        payload: dict[str, Any] = self.header["payload"]
        return payload


class Follower:
    """Keeps every message of one stream, and lets a test wait for the one it needs."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.frames: list[Frame] = []
        self.closed = False
        self._socket = socket
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def until(self, fits: Callable[[Frame], bool]) -> Frame:
        """The first message that fits, once it has come."""
        async with self._news:
            while True:
                for frame in self.frames:
                    if fits(frame):
                        return frame
                assert not self.closed, self.frames
                await self._news.wait()

    async def kind(self, kind: str) -> Frame:
        """The first message of this type."""
        return await self.until(lambda frame: frame.kind == kind)

    async def state(self, id: int, *statuses: str) -> Frame:
        """The message that a payload has come to one of these states."""
        return await self.until(
            lambda frame: (
                frame.kind == "state"
                and frame.payload["id"] == id
                and frame.payload["status"] in statuses
            )
        )

    async def ended(self, id: int) -> dict[str, Any]:
        """A payload, once it has ended."""
        return (await self.state(id, *ENDS)).payload

    async def of_attempt(self, job: int, attempt: int) -> dict[str, Any]:
        """A payload as it was first told of, by what its server calls it."""
        frame = await self.until(
            lambda frame: (
                frame.kind == "state"
                and (frame.payload["job"], frame.payload["attempt"]) == (job, attempt)
            )
        )
        return frame.payload

    async def submit(
        self, job: int, files: Files | str, *, attempt: int = 1, service: str = "example"
    ) -> None:
        """Hand a small job over."""
        bodies = contents(files)
        header = {
            "job": job,
            "attempt": attempt,
            "service": service,
            "files": [
                {"name": name, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
                for name, body in bodies.items()
            ],
        }
        await self.say("submit", header, b"".join(bodies.values()))

    async def acknowledge(self, job: int, attempt: int = 1) -> None:
        """Tell that the end of an attempt and its files have arrived."""
        await self.say("acknowledge", {"job": job, "attempt": attempt})

    async def say(self, kind: str, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Any message."""
        await self.send(raw_frame(kind, header, body))

    async def send(self, frame: bytes) -> None:
        """What may be no message at all."""
        await self._socket.send_bytes(frame)

    async def end(self) -> None:
        """Wait until the client has closed the stream."""
        await self._reading

    async def close(self) -> None:
        """Close the stream."""
        await self._socket.close()
        await self._reading

    async def _read(self) -> None:
        try:
            async for message in self._socket:
                said, body = unpack_frame(message.data)
                frame = Frame(*plain(said), body)
                async with self._news:
                    self.frames.append(frame)
                    self._news.notify_all()
        finally:
            async with self._news:
                self.closed = True
                self._news.notify_all()


def contents(files: Mapping[str, Any] | str) -> dict[str, bytes]:
    """The files of a job as bytes; a text is its run.sh."""
    named = {"run.sh": files} if isinstance(files, str) else files
    return {n: c.encode() if isinstance(c, str) else c for n, c in named.items()}


@contextlib.asynccontextmanager
async def following(
    session: aiohttp.ClientSession, base: str, server: str = "a-server"
) -> AsyncIterator[Follower]:
    """The stream of the client at this address, open for a server of this name."""
    headers = {H_PROTOCOL: str(PROTOCOL), H_SERVER: server}
    socket = await session.ws_connect(
        base.rstrip("/") + "/stream", headers=headers, max_msg_size=FRAME_LIMIT
    )
    follower = Follower(socket)
    try:
        yield follower
    finally:
        await follower.close()
