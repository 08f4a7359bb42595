"""/load, /health, /live, and what stands in every answer of a client."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from orchestrator_client import load
from orchestrator_client.load import Load
from orchestrator_shared import __version__
from support.agent import Agent, agent
from support.gate import Gate


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with three slots."""
    async with agent(tmp_path / "client", session, slots=3) as own:
        yield own


async def test_load_is_a_bare_number(client: Agent) -> None:
    """0 to 100, as JSON."""
    answer = await client.portal.get("/load")

    assert answer.status == 200
    assert type(answer.json) in (int, float)
    assert 0 <= answer.json <= 100
    assert float(answer.body) == answer.json


async def test_load_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not since the last call: who asks often, or in between, changes nothing."""
    clock = {"at": 100.0, "busy": 0.0}
    monkeypatch.setattr(load, "_read", lambda: (clock["at"], clock["busy"], 2 * clock["at"]))
    monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=lambda: clock["at"]))
    measured = Load()

    for second in range(20):
        # Of two CPUs, one is busy all the time at first, then none.
        clock["at"] += 1
        clock["busy"] += 1 if second < 10 else 0
        await measured.run_once()
        if second == 9:
            assert measured.percent() == measured.percent() == 50.0
    assert measured.percent() == 0.0


async def test_health_says_what_the_client_is(client: Agent, tmp_path: Path) -> None:
    """Version, protocol, instance, service, slots and how many are in use."""
    gate = Gate(tmp_path)

    idle = await client.portal.get("/health")
    for _ in range(2):
        await client.submit(gate.wait)
        await gate.reached()
    busy = await client.portal.get("/health")

    assert (idle.status, busy.status) == (200, 200)
    assert idle.json == {
        "status": "healthy",
        "problems": [],
        "version": __version__,
        "protocol": 1,
        "instance": (client.data_path / "instance").read_text().strip(),
        "service": None,
        "slots": 3,
        "slots_in_use": 0,
    }
    assert busy.json["slots_in_use"] == 2
    gate.close()


async def test_health_says_that_the_disk_is_full(client: Agent) -> None:
    """503, and what is wrong."""
    await client.restart(min_free_disk=2**60)

    answer = await client.portal.get("/health")

    assert answer.status == 503
    assert answer.json["status"] == "unhealthy"
    assert "MIN_FREE_DISK" in answer.json["problems"][0]


async def test_live_says_that_the_process_turns(client: Agent) -> None:
    """Also where something is wrong: a restart would not help."""
    await client.restart(min_free_disk=2**60)

    answer = await client.portal.get("/live")

    assert (answer.status, answer.json) == (200, {"status": "live"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/load", 200),
        ("GET", "/health", 200),
        ("GET", "/live", 200),
        ("GET", "/retrieve/1", 404),
        ("HEAD", "/retrieve/1", 404),
        ("GET", "/nothing", 404),
        ("GET", "/kill/1", 405),
        ("POST", "/submit", 400),
        ("GET", "/stream", 400),
    ],
)
async def test_every_answer_says_who_answers(
    client: Agent, method: str, path: str, status: int
) -> None:
    """The protocol and the instance stand in its headers; errors have the body of errors."""
    answer = await client.portal.request(method, path)

    assert answer.status == status
    assert answer.headers["Orchestrator-Protocol"] == "1"
    instance = (client.data_path / "instance").read_text().strip()
    assert answer.headers["Orchestrator-Instance"] == instance
    if status >= 400 and method != "HEAD":
        assert set(json.loads(answer.body)) == {"id", "status", "message"}


async def test_an_instance_is_one_data_path(
    client: Agent, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """It stays over restarts; another DATA_PATH has another; a start is always new."""
    first = (await client.stream.kind("hello")).header
    await client.restart()
    second = (await client.stream.kind("hello")).header
    async with agent(tmp_path / "other", session) as other:
        third = (await other.stream.kind("hello")).header

    assert first["instance"] == second["instance"] != third["instance"]
    assert len({first["start"], second["start"], third["start"]}) == 3
