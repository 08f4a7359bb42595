"""A server and its clients in the process of the test: real SQLite, HTTP and bash."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from orchestrator_client import app as client_app
from orchestrator_client import keys as client_keys
from orchestrator_client.config import Config as ClientConfig
from orchestrator_server import app as server_app
from orchestrator_server.config import ClientAddress, Service
from orchestrator_server.config import Config as ServerConfig
from orchestrator_shared.status import PayloadStatus
from support.portal import Portal


def server_config(data_path: Path, **changes: Any) -> ServerConfig:
    """The defaults of a server, but for its paths, and intervals that nothing waits for."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "db_path": data_path.with_name(data_path.name + ".sqlite"),
        "data_path": data_path,
        "max_age": 172800.0,
        "max_upload_size": 400 * 2**20,
        "min_free_disk": 0,
        "sender_interval": 0.5,
        "getter_interval": 0.5,
        "cleaner_interval": 60.0,
        "client_lost_after": 15.0,
        "client_gone_after": 600.0,
        "client_give_up_after": 7 * 86400.0,
        "log_level": "INFO",
        "services": {},
    }
    return ServerConfig(**{**values, **changes})


def client_config(data_path: Path, **changes: Any) -> ClientConfig:
    """The defaults of a client, but for its paths, and a short grace."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "data_path": data_path,
        "db_path": ":memory:",
        "slots": 2,
        "cpus_per_slot": 1,
        "job_env": (),
        "runner_interval": 0.5,
        "max_age": 172800.0,
        "unclaimed_max_age": 30 * 86400.0,
        "min_free_disk": 0,
        "log_level": "INFO",
        "job_timeout": None,
        "kill_grace": 1.0,
    }
    return ClientConfig(**{**values, **changes})


@contextlib.asynccontextmanager
async def running_client(config: ClientConfig, port: int = 0) -> AsyncIterator[TestServer]:
    """A client that is served; what still runs under it is ended at the end."""
    app = client_app.create_app(config)
    server = TestServer(app, port=port or unused_port())
    await server.start_server(shutdown_timeout=1)
    try:
        yield server
    finally:
        await _end_what_runs(app)
        await server.close()


@contextlib.asynccontextmanager
async def running_server(config: ServerConfig) -> AsyncIterator[TestServer]:
    """A server that is served."""
    server = TestServer(server_app.create_app(config), port=config.port or unused_port())
    await server.start_server(shutdown_timeout=1)
    try:
        yield server
    finally:
        await server.close()


async def _end_what_runs(app: web.Application) -> None:
    payloads = app[client_keys.PAYLOADS]
    for payload in payloads.with_status(PayloadStatus.RUNNING):
        while (now := payloads.get(payload.id)).status is PayloadStatus.RUNNING and not now.pid:
            await asyncio.sleep(0)
        if now.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(now.pid, 9)


class System:
    """A server with the service `example` at one client, and a portal that talks to it."""

    def __init__(
        self, portal: Portal, server: TestServer, client: TestServer, client_portal: Portal
    ) -> None:
        self.portal = portal
        self.server = server.app
        self.client = client.app
        #: The client's own HTTP interface.
        self.at_client = client_portal


@contextlib.asynccontextmanager
async def running_system(
    tmp_path: Path,
    *,
    server: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
) -> AsyncIterator[System]:
    """Both of them, with these settings changed. The client is there when this is entered."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        client_server = await stack.enter_async_context(
            running_client(client_config(tmp_path / "client", **(client or {})))
        )
        base = str(client_server.make_url("")).rstrip("/")
        example = Service("example", (ClientAddress.from_base(base),), **(service or {}))
        own_server = await stack.enter_async_context(
            running_server(
                server_config(
                    tmp_path / "server", **{"services": {"example": example}, **(server or {})}
                )
            )
        )
        portal = Portal(own_server.make_url(""), session)
        await client_is_there(portal)
        yield System(portal, own_server, client_server, Portal(base, session))


async def client_is_there(portal: Portal, count: int = 1) -> None:
    """Wait until so many clients are up: a first job goes to one as soon as it can."""
    while (await portal.get("/health")).json["clients_up"] < count:
        pass
