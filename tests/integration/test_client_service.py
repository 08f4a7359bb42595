"""SERVICE: a client that runs the jobs of one service alone."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.agent import Agent, agent, claim


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client of the service `md_prep`."""
    async with agent(tmp_path / "client", session, service="md_prep") as own:
        yield own


async def test_it_says_whose_client_it_is(client: Agent) -> None:
    """In its first message to a server, and in /health."""
    hello = (await client.stream.kind("hello")).header

    assert hello["service"] == "md_prep"
    assert (await client.portal.get("/health")).json["service"] == "md_prep"


@pytest.mark.parametrize("name", ["md_prep", "MD-Prep", " md.prep "])
async def test_its_own_service_is_taken_however_it_is_spelled(client: Agent, name: str) -> None:
    """Case, '-' and '.' make no difference."""
    assert (await client.try_submit("true", claim(1, service=name))).status == 200


async def test_who_names_no_service_is_served(client: Agent) -> None:
    """A server that does not say who it is knows the client by its address."""
    assert (await client.try_submit("true", {})).status == 200


async def test_another_service_is_refused(client: Agent) -> None:
    """409 without the number of an attempt, and both services are named; nothing is left."""
    answer = await client.try_submit("true", claim(1, service="docking"))

    assert answer.status == 409
    assert "Orchestrator-Attempt" not in answer.headers
    assert "'md_prep'" in answer.json["message"]
    assert "'docking'" in answer.json["message"]
    assert client.left() == []


async def test_so_it_is_on_the_stream(client: Agent) -> None:
    """Refused for now: the job may go to another client of its service."""
    file = {"name": "run.sh", "size": 4, "sha256": hashlib.sha256(b"true").hexdigest()}
    head = {"job": 3, "attempt": 1, "service": "docking", "files": [file]}

    await client.stream.say("submit", head, b"true")
    refused = (await client.stream.kind("refused")).header

    assert (refused["job"], refused["transient"], refused["held"]) == (3, True, None)
    assert "'docking'" in refused["message"]


async def test_a_client_of_any_service_says_so(client: Agent) -> None:
    """Without the setting it takes what comes."""
    await client.restart(service=None)

    assert (await client.stream.kind("hello")).header["service"] is None
    assert (await client.try_submit("true", claim(1, service="docking"))).status == 200


async def test_an_older_attempt_is_told_which_one_is_held(client: Agent) -> None:
    """409 with the number of the higher attempt."""
    await client.run("true", job=1, attempt=4, service="md_prep")

    answer = await client.try_submit("true", claim(1, attempt=3, service="md_prep"))

    assert (answer.status, answer.headers["Orchestrator-Attempt"]) == (409, "4")
