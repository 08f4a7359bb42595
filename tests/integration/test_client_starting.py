"""A client that starts with much on its disk: nobody is told that something is not there."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer, unused_port

from orchestrator_client import starting
from orchestrator_client.app import create_app
from support.agent import Agent, agent, claim, form
from support.portal import Portal
from support.system import client_config


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


class Slow:
    """A file that is read only once the test writes it: as long as that lasts, so does a start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)

    def write(self) -> None:
        """Let it be read, as it was."""
        with open(self._path, "wb") as file:
            file.write(self.content)


@contextlib.asynccontextmanager
async def serving(client: Agent) -> AsyncIterator[Portal]:
    """The client on the same disk, listening, however far its start has come."""
    server = TestServer(create_app(client_config(client.data_path)), port=unused_port())
    await server.start_server(shutdown_timeout=1)
    try:
        yield Portal(server.make_url(""), client.session)
    finally:
        await server.close()


async def test_it_says_that_it_starts(client: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 to whatever is asked of payloads, never 404; then all is as it was."""
    monkeypatch.setattr(starting, "PATIENCE", 0.01)
    id = (await client.run("echo x > out.txt", job=1))["id"]
    await client.stop()
    slow = Slow(client.control(id) / "payload.json")
    async with serving(client) as portal:
        asked = [
            await portal.get(f"/retrieve/{id}", headers=claim(1)),
            await portal.get("/retrieve/1"),
            await portal.post(f"/kill/{id}", headers=claim(1)),
            await portal.post("/submit", data=form("true"), headers=claim(1)),
            await portal.get("/stream", headers=claim(1)),
            await portal.get("/health"),
        ]
        alive = await portal.get("/live")

        slow.write()
        while (await portal.get("/health")).status != 200:
            pass
        again = await portal.post("/submit", data=form("true"), headers=claim(1))
        result = await portal.get(f"/retrieve/{id}")

    assert [answer.status for answer in asked] == [503] * 6
    assert all("starting" in answer.json["message"] for answer in asked)
    assert alive.status == 200
    assert (again.json["id"], again.json["status"]) == (id, "Completed")
    assert result.zip.read("out.txt") == b"x\n"


async def test_it_can_be_stopped_meanwhile(client: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had not taken up yet is taken up at the next start."""
    monkeypatch.setattr(starting, "PATIENCE", 0.01)
    id = (await client.run("true", job=1))["id"]
    await client.stop()
    slow = Slow(client.control(id) / "payload.json")
    async with serving(client) as portal:
        assert (await portal.get("/health")).status == 503

    # The thread that was left waiting takes this one.
    slow.write()
    (client.control(id) / "payload.json").unlink()
    (client.control(id) / "payload.json").write_bytes(slow.content)
    await client.start()

    assert (await client.stream.ended(id))["status"] == "Completed"
