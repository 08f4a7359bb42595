"""CHECK: while it fails the client takes no work, and says why."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator_client import check, processes
from support.agent import Agent, agent, claim
from support.gate import Gate


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with one slot, and no check yet."""
    async with agent(tmp_path / "client", session, slots=1) as own:
        yield own


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs all the time."""
    monkeypatch.setattr(check, "AGAIN", 0.05)
    monkeypatch.setattr(check, "INTERVAL", 0.0)


async def told(client: Agent, state: str, why: str = "") -> dict[str, Any]:
    """Wait for a heartbeat with this state, whose reason has these words."""
    frame = await client.stream.until(
        lambda frame: (
            frame.kind == "heartbeat"
            and frame.header["state"] == state
            and why in frame.header["why"]
        )
    )
    return frame.header


async def test_a_client_whose_check_passes_is_up(client: Agent) -> None:
    """It works as one without a check."""
    await client.restart(check="echo fine")

    await told(client, "up")

    assert (await client.run("true"))["status"] == "Completed"
    assert (await client.portal.get("/health")).status == 200


async def test_nothing_is_taken_before_it_has_passed_once(client: Agent, tmp_path: Path) -> None:
    """Nobody knows yet whether the machine is fit: 503, and it says so."""
    gate = Gate(tmp_path)
    await client.restart(check=f"ORCH_JOB_ID=1; {gate.wait}")
    await gate.reached()

    early = await client.try_submit("true", claim(1))
    health = await client.portal.get("/health")
    gate.open()
    await told(client, "up")

    assert early.status == 503
    assert "CHECK" in early.json["message"]
    assert (health.status, "CHECK" in health.json["problems"][0]) == (503, True)
    assert (await client.try_submit("true", claim(1))).status == 200
    gate.close()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "CHECK fails (3)"),
        ("echo first; echo; echo no GPU; echo ' '; exit 1", "CHECK fails (1): no GPU"),
        ("echo no licence >&2; exit 1", "CHECK fails (1): no licence"),
        ("/nowhere/check", "/nowhere/check"),
        ("kill -9 $$", "CHECK fails (-9)"),
        ("seq 100000; exit 1", "CHECK fails (1): 100000"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", "CHECK fails (1): " + 200 * "x"),
        ("printf 'a\\033[31m\\377'; exit 1", "CHECK fails (1): a[31m"),
    ],
)
async def test_a_check_that_fails_is_named_with_its_last_line(
    client: Agent, script: str, says: str
) -> None:
    """On the stream, in /health, and to who wants to hand over a job."""
    await client.restart(check=script)

    beat = await told(client, "out", says)
    refused = await client.try_submit("true", claim(1))
    health = await client.portal.get("/health")

    assert len(beat["why"]) < 300
    assert beat["why"] in health.json["problems"]
    assert health.status == 503
    assert (refused.status, beat["why"] in refused.json["message"]) == (503, True)
    assert client.left() == []


async def test_a_check_that_takes_too_long_fails(
    client: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed, with all of its process group."""
    monkeypatch.setattr(check, "TIME_LIMIT", 1.0)
    pids = tmp_path / "pids"
    await client.restart(
        check=f"echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; echo slow; wait"
    )

    await told(client, "out", "CHECK took more than 1 s: slow")

    while [pid for pid in pids.read_text().split() if alive(int(pid))]:
        await client.portal.get("/live")


async def test_what_a_check_leaves_behind_is_not_waited_for(client: Agent, tmp_path: Path) -> None:
    """Its own end counts, whoever still holds its output; what it left is killed."""
    pid = tmp_path / "pid"
    await client.restart(check=f"sleep 1000 & echo $! > {pid}; echo fine")

    await told(client, "up")

    while alive(int(pid.read_text())):
        await client.portal.get("/live")


@pytest.mark.usefixtures("often")
async def test_a_machine_that_was_repaired_is_back(client: Agent, tmp_path: Path) -> None:
    """And one that breaks is out; what runs goes on."""
    broken = tmp_path / "broken"
    gate = Gate(tmp_path)
    await client.restart(check=f"test ! -e {broken} || {{ echo broken; exit 1; }}")
    await told(client, "up")
    payload = await client.submit(gate.wait)
    await gate.reached()

    broken.touch()
    await told(client, "out", "broken")
    client.stream.frames.clear()
    gate.open()
    assert (await client.stream.ended(payload["id"]))["status"] == "Completed"
    assert (await client.try_submit("true", claim(9))).status == 503
    broken.unlink()
    await told(client, "up")

    assert (await client.run("true"))["status"] == "Completed"
    gate.close()


@pytest.mark.usefixtures("often")
async def test_what_waits_is_handed_back_when_it_fails(client: Agent, tmp_path: Path) -> None:
    """Its server may have another client for it; what no server can send again waits on."""
    broken = tmp_path / "broken"
    gate = Gate(tmp_path)
    await client.restart(check=f"test ! -e {broken} || {{ echo broken; exit 1; }}")
    await told(client, "up")
    running = await client.submit(gate.wait)
    await gate.reached()
    waiting = await client.submit("true")
    anonymous = (await client.try_submit("true", {})).json

    broken.touch()
    end = await client.stream.ended(waiting["id"])

    assert (end["handed_back"], end["lost"], end["killed"]) == (True, True, False)
    assert "broken" in end["reason"]
    gate.open()
    await client.stream.ended(running["id"])
    assert (await client.retrieve(anonymous["id"])).json["status"] == "Prepared"
    broken.unlink()
    while (await client.retrieve(anonymous["id"])).status == 202:
        pass
    assert (await client.retrieve(anonymous["id"])).status == 200
    gate.close()


async def test_a_stop_ends_a_check_under_way(client: Agent, tmp_path: Path) -> None:
    """Nothing of it is left."""
    gate = Gate(tmp_path)
    pid = tmp_path / "pid"
    await client.restart(check=f"echo $$ > {pid}; ORCH_JOB_ID=1; {gate.wait}")
    await gate.reached()

    await client.stop()

    assert not alive(int(pid.read_text()))
    gate.close()


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return processes.read_stat(pid)[0] not in ("", "Z", "X")
