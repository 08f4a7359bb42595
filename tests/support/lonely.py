"""A server whose clients are away: what is uploaded stays Queued."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import unused_port

from orchestrator_server.config import ClientAddress, Service
from support.portal import Portal
from support.system import running_server, server_config


def service(name: str = "example", **limits: Any) -> Service:
    """A service whose one client is not there."""
    return Service(name, (ClientAddress.from_base(f"http://127.0.0.1:{unused_port()}"),), **limits)


class Lonely:
    """Such a server, and a portal that talks to it."""

    def __init__(self, portal: Portal, server: web.Application, data_path: Path) -> None:
        self.portal = portal
        self.server = server
        self.data_path = data_path

    def left(self) -> list[Path]:
        """The files and folders of jobs, and of uploads under way."""
        # Not Path.glob: what is looked through may be removed meanwhile.
        places = (self.data_path / "jobs", *(self.data_path / "tmp").iterdir())
        found = [entry for place in places for entry in os.walk(place)]
        return [Path(folder, name) for folder, below, files in found for name in (*below, *files)]

    async def left_nothing(self) -> bool:
        """Whether there is no trace of an upload: on disk, in the database, in the history."""
        jobs = (await self.portal.get("/jobs")).json["jobs"]
        events = (await self.portal.get("/events")).json["events"]
        return not (self.left() or jobs or events)


@contextlib.asynccontextmanager
async def lonely_server(
    tmp_path: Path, *services: Service, **changes: Any
) -> AsyncIterator[Lonely]:
    """A server with these services (or one, `example`), and these settings changed."""
    named = {own.name: own for own in services or (service(),)}
    config = server_config(tmp_path / "server", **{"services": named, **changes})
    async with aiohttp.ClientSession() as session, running_server(config) as server:
        yield Lonely(Portal(server.make_url(""), session), server.app, config.data_path)
