"""A server and a client with a proxy between them, which does harm."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from orchestrator_server.config import ClientAddress, Service
from support.portal import Portal
from support.proxy import Proxy
from support.system import (
    System,
    client_config,
    client_is_there,
    running_client,
    running_server,
    server_config,
)


@contextlib.asynccontextmanager
async def system_behind_proxy(
    tmp_path: Path,
    *,
    server: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[System, Proxy]]:
    """As running_system, with the proxy as the only way from the server to the client."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        behind = await stack.enter_async_context(
            running_client(client_config(tmp_path / "client", **(client or {})))
        )
        assert behind.port is not None
        proxy = Proxy(behind.port)
        await proxy.up()
        stack.push_async_callback(proxy.down)
        example = Service("example", (ClientAddress.from_base(proxy.url),), **(service or {}))
        settings = {"services": {"example": example}, **(server or {})}
        front = await stack.enter_async_context(
            running_server(server_config(tmp_path / "server", **settings))
        )
        portal = Portal(front.make_url(""), session)
        await client_is_there(portal)
        yield System(portal, front, behind, Portal(behind.make_url(""), session)), proxy
