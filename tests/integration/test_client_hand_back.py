"""What a server asks of a client beside running: to list all again, and to hand back what waits."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.agent import Agent, agent, claim
from support.follower import Follower
from support.gate import Gate


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with one slot."""
    async with agent(tmp_path / "client", session, slots=1) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


async def listed(stream: Follower) -> dict[int, dict[str, Any]]:
    """The payloads that a list tells of, once it is whole; by their jobs."""
    await stream.kind("listed")
    states = [frame.payload for frame in stream.frames if frame.kind == "state"]
    return {payload["job"]: payload for payload in states}


async def test_a_list_tells_of_every_payload_again(client: Agent, gate: Gate) -> None:
    """As it is now, with numbers that go on rising; then `listed`. Nobody else's are in it."""
    await client.run("echo x > out.txt", job=1)
    await client.submit(gate.wait, job=2)
    await gate.reached()
    await client.submit("true", job=3)
    await client.submit("true", job=4, server="another")
    highest = max(f.header["seq"] for f in client.stream.frames if f.kind == "state")
    client.stream.frames.clear()

    await client.stream.say("list", {})
    found = await listed(client.stream)

    assert {job: payload["status"] for job, payload in found.items()} == {
        1: "Completed",
        2: "Running",
        3: "Prepared",
    }
    numbers = [f.header["seq"] for f in client.stream.frames if f.kind == "state"]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > highest
    gate.close()


async def test_a_client_that_has_nothing_lists_nothing(client: Agent) -> None:
    """`listed` alone."""
    await client.stream.kind("listed")
    client.stream.frames.clear()

    await client.stream.say("list", {})

    assert await listed(client.stream) == {}


async def test_a_drained_client_hands_back_what_waits(client: Agent, gate: Gate) -> None:
    """It never starts, and says that it was given up; what runs goes on, and so does what another
    server's is."""
    running = await client.submit(gate.wait, job=1)
    await gate.reached()
    waiting = [await client.submit("true", job=job) for job in (2, 3)]
    others = await client.submit("true", job=2, server="another")

    await client.stream.say("hand_back", {})
    ends = [await client.stream.ended(payload["id"]) for payload in waiting]

    for end in ends:
        assert (end["status"], end["fault"]) == ("Failed", "infrastructure")
        assert (end["lost"], end["handed_back"], end["killed"]) == (True, True, False)
        assert (end["exit_code"], end["result"]) == (None, None)
        assert "drained" in end["reason"]
    assert (await client.retrieve(running["id"])).json["status"] == "Running"
    assert (await client.retrieve(others["id"])).json["status"] == "Prepared"
    gate.open()
    assert (await client.stream.ended(running["id"]))["status"] == "Completed"
    assert (await client.stream.ended(running["id"]))["handed_back"] is False
    async with client.follow("another") as stream:
        assert (await stream.ended(others["id"]))["status"] == "Completed"
    gate.close()


async def test_what_was_handed_back_stays_so(client: Agent, gate: Gate) -> None:
    """Over a restart, and when it is sent again: its server has to begin a new attempt."""
    await client.submit(gate.wait, job=1)
    await gate.reached()
    waiting = await client.submit("true", job=2)
    await client.stream.say("hand_back", {})
    end = await client.stream.ended(waiting["id"])

    await client.restart()
    again = await client.stream.ended(waiting["id"])
    same = (await client.try_submit("true", claim(2))).json
    # It had ended before: that stands.
    late = await client.kill(waiting["id"])

    assert again == end
    assert (same["id"], same["handed_back"]) == (waiting["id"], True)
    assert late.status == 409
    gate.open()
    next_one = await client.run("true", job=2, attempt=2)
    assert (next_one["status"], next_one["handed_back"]) == ("Completed", False)
    gate.close()


async def test_what_was_handed_back_can_be_dropped(client: Agent, gate: Gate) -> None:
    """Its server acknowledges it as any end."""
    await client.submit(gate.wait, job=1)
    await gate.reached()
    waiting = await client.submit("true", job=2)
    await client.stream.say("hand_back", {})
    await client.stream.ended(waiting["id"])

    await client.stream.acknowledge(2)
    await client.stream.state(waiting["id"], "Cleaned")
    while client.control(waiting["id"]).exists() or client.work(waiting["id"]).exists():
        await client.portal.get("/live")

    assert (await client.retrieve(waiting["id"])).status == 204
    gate.close()


async def test_one_that_was_to_be_killed_is_killed(client: Agent, gate: Gate) -> None:
    """A kill that came first stands, also where its end comes after the drain."""
    await client.restart(kill_grace=3600.0)
    running = await client.submit(f"trap '{gate.wait}; exit 0' TERM; {gate.wait}", job=1)
    await gate.reached()
    await client.kill(running["id"])
    await gate.reached()

    await client.stream.say("hand_back", {})
    gate.open()
    end = await client.stream.ended(running["id"])

    assert (end["status"], end["handed_back"]) == ("Killed", False)
    gate.close()
