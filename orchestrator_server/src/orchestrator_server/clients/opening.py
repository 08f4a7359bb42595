"""How the stream to a client is opened, and why one that answers does not come to that."""

import asyncio
from typing import Final

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType

from orchestrator_server.clients.requests import Requests
from orchestrator_shared.errors import OrchestratorError
from orchestrator_shared.frames import pack_frame, unpack_frame
from orchestrator_shared.messages import Hello, Message, Other
from orchestrator_shared.protocol import (
    FRAME_LIMIT,
    H_INSTANCE,
    H_PROTOCOL,
    H_SERVER,
    PROTOCOL,
    STREAM,
)

OTHER_PROTOCOL: Final = (
    f"it speaks protocol {{}}, and this server protocol {PROTOCOL}: install versions that are "
    "neighbours"
)
NOT_LET_IN: Final = (
    "it wants another token: CLIENT_TOKEN_FILE has to name the same secret there and here"
)


class Out(OrchestratorError):
    """{problem}"""

    def __init__(self, problem: str, instance: str | None) -> None:
        """`instance` is which client it is, if it said so."""
        super().__init__(problem=problem)
        self.instance = instance


class Stream:
    """The stream of one of our clients: messages, and the bytes that belong to them."""

    #: Whether a small job may go along on it.
    takes_small_jobs: Final = True
    #: Whether the client says how many jobs it runs at once.
    tells_slots: Final = True

    def __init__(self, socket: ClientWebSocketResponse, requests: Requests) -> None:
        """`requests` are those to the same client."""
        self.requests = requests
        self._socket = socket

    async def receive(self, patience: float) -> tuple[Message | Other, bytes] | None:
        """What the client says next, within so many seconds; None: it has closed the stream.

        Raises:
            NotUsable: it arrived damaged.
            aiohttp.ClientError, OSError, TimeoutError: nothing comes.
        """
        message = await self._socket.receive(timeout=patience)
        return unpack_frame(message.data) if message.type is WSMsgType.BINARY else None

    async def send(self, message: Message, body: bytes = b"") -> None:
        """Say something."""
        await self._socket.send_bytes(pack_frame(message, body))

    async def aclose(self) -> None:
        """Say nothing any more."""
        await self._socket.close()


async def open_stream(
    session: aiohttp.ClientSession, requests: Requests, base: str, server: str, patience: float
) -> Stream:
    """Open a stream within `patience` seconds.

    Raises:
        Out: a client answers, and will not work with this server.
        aiohttp.WSServerHandshakeError: another program answers.
        aiohttp.ClientError, OSError, TimeoutError: nobody does.
    """
    headers = {H_PROTOCOL: str(PROTOCOL), H_SERVER: server}
    try:
        async with asyncio.timeout(patience):
            socket = await session.ws_connect(
                base + STREAM, headers=headers, max_msg_size=FRAME_LIMIT
            )
            return Stream(socket, requests)
    except aiohttp.WSServerHandshakeError as error:
        if error.headers is None or (spoken := error.headers.get(H_PROTOCOL)) is None:
            raise
        if spoken != str(PROTOCOL):
            problem = OTHER_PROTOCOL.format(spoken)
        elif error.status == 401:
            problem = NOT_LET_IN
        else:
            raise
        raise Out(problem, error.headers.get(H_INSTANCE)) from error


def check_protocol(hello: Hello) -> None:
    """Refuse a client that took the stream, and speaks another protocol all the same.

    Raises:
        Out: that is so.
    """
    if hello.protocol != PROTOCOL:
        raise Out(OTHER_PROTOCOL.format(hello.protocol), hello.instance)
