"""Who may ask: where there is a token (CLIENT_TOKEN_FILE), whoever has it."""

from typing import Final

from aiohttp import web

from orchestrator_shared.answers import Handler
from orchestrator_shared.client_token import ClientToken
from orchestrator_shared.errors import Unauthorized
from orchestrator_shared.protocol import HEALTH

#: What anybody may ask: those who watch over machines have no token.
OPEN: Final = frozenset({HEALTH})


class Authorized:
    """Lets in who has the token."""

    def __init__(self, token: ClientToken | None) -> None:
        self._token = token

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer nobody else, but for what anybody may ask."""
        token = self._token
        if token is not None and request.path not in OPEN and not token.is_in(request.headers):
            raise Unauthorized
        return await handler(request)
