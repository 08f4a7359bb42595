"""A server in the process of the test, with clients of any kind."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from orchestrator_server.config import ClientAddress, Service
from support.portal import Portal
from support.system import running_server, server_config


class OwnServer:
    """A server and a portal that talks to it."""

    def __init__(self, portal: Portal, app: web.Application) -> None:
        self.portal = portal
        self.app = app


def services(clients: Mapping[str, Sequence[str]], **settings: Any) -> dict[str, Service]:
    """Services by name, with the base URLs of their clients, and these settings for each."""
    return {
        name: Service(name, tuple(map(ClientAddress.from_base, bases)), **settings)
        for name, bases in clients.items()
    }


def server_of(
    tmp_path: Path,
    clients: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    service: Mapping[str, Any] | None = None,
    **changes: Any,
) -> contextlib.AbstractAsyncContextManager[OwnServer]:
    """A server with these services, or with the service `example` at these clients.

    Entered again with the same path it is the same server, started anew.
    """
    if not isinstance(clients, Mapping):
        clients = {"example": clients}
    return server_with(tmp_path, services(clients, **(service or {})), **changes)


@contextlib.asynccontextmanager
async def server_with(
    tmp_path: Path, configured: Mapping[str, Service], **changes: Any
) -> AsyncIterator[OwnServer]:
    """Likewise, with services that are set up one by one."""
    config = server_config(tmp_path / "server", services=configured, **changes)
    async with aiohttp.ClientSession() as session, running_server(config) as server:
        yield OwnServer(Portal(server.make_url(""), session), server.app)
