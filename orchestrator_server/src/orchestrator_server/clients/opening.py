"""How the stream to a client is opened, and why one that answers does not come to that."""

import asyncio
from typing import Final

import aiohttp
from aiohttp import ClientWebSocketResponse

from orchestrator_shared.errors import OrchestratorError
from orchestrator_shared.messages import Hello
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


async def open_stream(
    session: aiohttp.ClientSession, base: str, server: str, patience: float
) -> ClientWebSocketResponse:
    """Open a stream within `patience` seconds.

    Raises:
        Out: a client answers, and will not work with this server.
        aiohttp.ClientError, OSError, TimeoutError: there is none.
    """
    headers = {H_PROTOCOL: str(PROTOCOL), H_SERVER: server}
    try:
        async with asyncio.timeout(patience):
            return await session.ws_connect(
                base + STREAM, headers=headers, max_msg_size=FRAME_LIMIT
            )
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
