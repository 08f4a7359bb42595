"""What a proxy does to messages between server and client: the faults, and the rules for them."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

#: A place in a message: bytes from its start (from its end, where negative), or its share.
Place = int | float


@dataclass(frozen=True)
class Message:
    """A request ("POST /submit"), its answer ("POST /submit answer"), or a frame of the stream
    (its type, as "submit"; "control" for what WebSocket says of its own)."""

    kind: str
    #: The headers of a request and of its answer in lower case, or the JSON line of a frame.
    info: Mapping[str, Any]
    #: As it is on the wire, whole; empty while only the head of a request has been seen.
    raw: bytes = field(default=b"", repr=False)
    #: Where its content begins in `raw`, and that content as its sender wrote it: of a frame
    #: what is behind the head of WebSocket, of a request all.
    begin: int = 0
    content: bytes = field(default=b"", repr=False)
    to_client: bool = True

    @property
    def job(self) -> int | None:
        """The job that it is about; None if it does not say."""
        about = self.info.get("payload", self.info)
        job = about.get("job", about.get("orchestrator-job"))
        return int(job) if job is not None else None

    @property
    def status(self) -> str | None:
        """The state of the payload that it tells of."""
        status: str | None = self.info.get("payload", {}).get("status")
        return status


class Outlet(Protocol):
    """What a fault can do with a message."""

    async def send(self, data: bytes) -> None:
        """Let these bytes through."""

    def cut(self) -> NoReturn:
        """End the connection, on both sides."""

    async def stall(self) -> NoReturn:
        """Keep the connection open, and let nothing through it any more."""


class Fault(Protocol):
    """Harm that is done to one message."""

    async def apply(self, message: Message, out: Outlet) -> None:
        """Let the message through, as far as it goes."""


def _at(place: Place, length: int) -> int:
    if isinstance(place, float):
        return int(place * length)
    return place if place >= 0 else length + place


@dataclass
class Cut:
    """The connection ends once so much of the message has gone through."""

    place: Place

    async def apply(self, message: Message, out: Outlet) -> None:
        await out.send(message.raw[: _at(self.place, len(message.raw))])
        out.cut()


@dataclass
class Stall:
    """Likewise, but the connection stays open, and silent."""

    place: Place

    async def apply(self, message: Message, out: Outlet) -> None:
        await out.send(message.raw[: _at(self.place, len(message.raw))])
        await out.stall()


@dataclass
class Slow:
    """The first `most` bytes go through at so many bytes per second, in ten pieces a second."""

    rate: int
    most: int

    async def apply(self, message: Message, out: Outlet) -> None:
        step = max(1, self.rate // 10)
        slow = min(self.most, len(message.raw))
        for start in range(0, slow, step):
            await out.send(message.raw[start : min(start + step, slow)])
            await asyncio.sleep(0.1)
        await out.send(message.raw[slow:])


@dataclass
class Delay:
    """The message, and what comes after it, is late by so many seconds."""

    seconds: float

    async def apply(self, message: Message, out: Outlet) -> None:
        await asyncio.sleep(self.seconds)
        await out.send(message.raw)


@dataclass
class Flip:
    """The lowest bit of one byte of the content is another: of the byte at a place, or of the one
    that group 1 of a pattern finds."""

    place: Place = -1
    pattern: bytes | None = None

    async def apply(self, message: Message, out: Outlet) -> None:
        if self.pattern is not None:
            found = re.search(self.pattern, message.content)
            assert found, (self.pattern, message.content[:500])
            index = found.start(1)
        else:
            index = _at(self.place, len(message.content))
        damaged = bytearray(message.raw)
        damaged[message.begin + index] ^= 1
        await out.send(bytes(damaged))


@dataclass
class Drop:
    """So many bytes at a place of the message are missing."""

    place: Place
    count: int

    async def apply(self, message: Message, out: Outlet) -> None:
        start = _at(self.place, len(message.raw))
        await out.send(message.raw[:start] + message.raw[start + self.count :])


@dataclass
class Hold:
    """The message waits, and all behind it on its connection, until it is let go; then another
    fault may befall it."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    then: Fault | None = None

    async def apply(self, message: Message, out: Outlet) -> None:
        await self.go.wait()
        if self.then is not None:
            await self.then.apply(message, out)
        else:
            await out.send(message.raw)


@dataclass
class Mark:
    """It goes through, and then `event` is set: what was held for it may go."""

    event: asyncio.Event

    async def apply(self, message: Message, out: Outlet) -> None:
        await out.send(message.raw)
        self.event.set()


@dataclass
class Record:
    """It goes through, and is kept to be replayed."""

    messages: list[Message] = field(default_factory=list, repr=False)

    async def apply(self, message: Message, out: Outlet) -> None:
        self.messages.append(message)
        await out.send(message.raw)


@dataclass
class Twice:
    """A frame comes twice, one right behind the other."""

    async def apply(self, message: Message, out: Outlet) -> None:
        await out.send(message.raw + message.raw)


@dataclass
class Refuse:
    """A request is cut off as soon as its head is there: the sender surely cannot end it, if it
    has more to send than fits on the way."""

    async def apply(self, message: Message, out: Outlet) -> None:
        out.cut()


@dataclass
class Instead:
    """Other bytes come in its place."""

    raw: bytes

    async def apply(self, message: Message, out: Outlet) -> None:
        await out.send(self.raw)


class Rule:
    """Which messages a fault befalls: of a kind, so many times, where `where` says so."""

    def __init__(
        self,
        kind: str,
        fault: Fault,
        *,
        times: int = 1,
        skip: int = 0,
        where: Callable[[Message], bool] = lambda _: True,
    ) -> None:
        self.kind = kind
        self.fault = fault
        self.hits = 0
        #: Set once it has befallen a message.
        self.hit = asyncio.Event()
        self._left = times
        self._skip = skip
        self._where = where

    def take(self, message: Message) -> bool:
        """Whether it befalls this message, which counts."""
        if message.kind != self.kind or self._left <= 0 or not self._where(message):
            return False
        if self._skip > 0:
            self._skip -= 1
            return False
        self._left -= 1
        self.hits += 1
        self.hit.set()
        return True

    def __repr__(self) -> str:
        return f"{self.fault} of {self.kind}"
