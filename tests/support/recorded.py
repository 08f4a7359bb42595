"""What went over the wire of the original: recorded exchanges, and playing their requests again.

tests/data/originals/<version>/<scenario>.json holds what a portal, a server and a client of it said
to each other: v1 is its version 1.3.0, v2 its version 2.2.3.
"""

import asyncio
import base64
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from multidict import CIMultiDict
from yarl import URL

from support.portal import Answer

RECORDED: Final = Path(__file__).resolve().parents[1] / "data" / "originals"
#: How long an answer may take (seconds) before the test gives up.
PATIENCE: Final = 30.0

Leg = Literal["portal-server", "server-client"]


@dataclass(frozen=True)
class Exchange:
    """One request, as it was sent, and what was answered."""

    leg: Leg
    start: str
    headers: tuple[str, ...]
    body: bytes
    #: None: nobody answered.
    answer: Answer | None

    @property
    def method(self) -> str:
        """The method of the request."""
        return self.start.split()[0]

    @property
    def path(self) -> str:
        """What it is about."""
        return self.start.split()[1]

    def raw(self, path: str) -> bytes:
        """The bytes of the request, for this path."""
        method, _, version = self.start.split()
        head = "\r\n".join((f"{method} {path} {version}", *self.headers, "", ""))
        return head.encode() + self.body


@dataclass(frozen=True)
class Scenario:
    """What was recorded of one scenario, in the order in which it began."""

    note: str
    exchanges: tuple[Exchange, ...]

    def of(self, leg: Leg) -> list[Exchange]:
        """What went between two of the three."""
        return [exchange for exchange in self.exchanges if exchange.leg == leg]


def recorded(version: str, scenario: str) -> Scenario:
    """A scenario."""
    held = json.loads((RECORDED / version / f"{scenario}.json").read_text())
    exchanges = []
    for entry in held["exchanges"]:
        said = entry["request"]
        answer = entry["response"] and _answer(entry["response"])
        exchanges.append(
            Exchange(entry["leg"], said["start"], tuple(said["headers"]), _body(said), answer)
        )
    return Scenario(held["note"], tuple(exchanges))


async def play(base: str, exchange: Exchange, path: str | None = None) -> Answer:
    """Send the request byte for byte, but for the path where another is named."""
    return await asyncio.to_thread(_play, URL(base), exchange, path or exchange.path)


def _play(base: URL, exchange: Exchange, path: str) -> Answer:
    with socket.create_connection((base.host, base.port), timeout=PATIENCE) as connection:
        connection.sendall(exchange.raw(path))
        response = http.client.HTTPResponse(connection, method=exchange.method)
        response.begin()
        with response:
            return Answer(response.status, CIMultiDict(response.getheaders()), response.read())


def _answer(said: Mapping[str, Any]) -> Answer:
    headers = CIMultiDict([header.split(": ", 1) for header in said["headers"]])
    return Answer(int(said["start"].split()[1]), headers, _body(said))


def _body(said: Mapping[str, Any]) -> bytes:
    text = said.get("body")
    body = base64.b64decode(said["body_base64"]) if text is None else text.encode()
    assert len(body) == said["body_length"]
    return body
