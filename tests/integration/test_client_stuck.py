"""What SIGKILL does not end: its payload ends all the same, and its slot is taken until it is gone.

A process that nobody can kill hangs inside the system, which no test can ask for. One of another
user whom the supervisor may not signal is the same to it: so it runs as a root that lacks CAP_KILL.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client import processes
from orchestrator_client.keys import RUNNER
from support.agent import Agent, agent, start_supervisor

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)

NOBODY = 65534
AS_NOBODY = f"setpriv --reuid {NOBODY} --clear-groups sleep 1000"
#: run.sh as such a process; and one that leaves such a process behind.
BECOMES_IT = f"echo $$ > $pids; exec {AS_NOBODY}"
LEAVES_IT = f"""
{AS_NOBODY} &
echo $! > $pids
until grep -q '^Uid:.{NOBODY}' /proc/$!/status; do :; done
"""


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with one slot, whose supervisor may not kill everything, and soon gives up."""
    async with agent(tmp_path / "client", session, slots=1, kill_grace=0.0) as own:
        bounded = ("setpriv", "--bounding-set", "-kill")
        await start_supervisor(own.data_path, *bounded, STUCK_AFTER=0.1, STUCK_LOOK=0.01)
        try:
            yield own
        finally:
            for pid in pids(own):
                kill(pid)


def pids(client: Agent) -> list[int]:
    """Those that run.sh has named."""
    path = client.data_path / "pids"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def kill(pid: int) -> None:
    """End a process as nobody but the test can."""
    if uid(pid) == NOBODY:
        os.kill(pid, signal.SIGKILL)


def uid(pid: int) -> int | None:
    """The user of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))


async def told(client: Agent, stuck: int) -> int:
    """Wait for a heartbeat that tells of so many; gives how many slots it says are taken."""
    frame = await client.stream.until(
        lambda frame: frame.kind == "heartbeat" and frame.header["stuck"] == stuck
    )
    others: int = frame.header["others"]
    return others


async def stuck(client: Agent, script: str) -> tuple[int, int]:
    """A payload of which a process cannot be killed; gives its id, and that process."""
    id = (await client.submit(f"pids={client.data_path}/pids; {script}"))["id"]
    while not pids(client):
        await client.portal.get("/live")
    (pid,) = pids(client)
    while uid(pid) != NOBODY:
        await client.portal.get("/live")
    return id, pid


async def test_a_run_sh_that_outlives_sigkill_ends_its_payload(client: Agent) -> None:
    """It is Killed, as it was to be; the slot is free only once the process is gone."""
    id, pid = await stuck(client, BECOMES_IT)

    assert (await client.kill(id)).status == 200
    end = await client.stream.ended(id)

    assert (end["status"], end["fault"], end["exit_code"]) == ("Killed", "operator", None)
    assert "after SIGKILL" in end["reason"]
    assert await told(client, 1) == 1
    health = await client.portal.get("/health")
    assert (health.status, health.json["slots_in_use"]) == (503, 1)
    assert "SIGKILL" in health.json["problems"][0]
    waiting = await client.submit("true")
    assert await client.app[RUNNER].run_once() == 0

    client.stream.frames.clear()
    kill(pid)

    assert (await client.stream.ended(waiting["id"]))["status"] == "Completed"
    assert await told(client, 0) == 0
    assert (await client.portal.get("/health")).status == 200


async def test_what_run_sh_leaves_behind_ends_nothing_either(client: Agent) -> None:
    """It has ended with its exit status, and says what is still there."""
    id, pid = await stuck(client, LEAVES_IT)

    end = await client.stream.ended(id)

    assert (end["status"], end["exit_code"]) == ("Completed", 0)
    assert "after SIGKILL" in end["reason"]
    assert await told(client, 1) == 1
    client.stream.frames.clear()
    kill(pid)
    assert await told(client, 0) == 0


async def test_a_slot_stays_taken_over_a_restart(client: Agent) -> None:
    """The supervisor has what is stuck, whoever asks; what ended meanwhile is told once."""
    id, pid = await stuck(client, BECOMES_IT)
    await client.kill(id)
    await client.stream.ended(id)

    await client.restart()

    assert await told(client, 1) == 1
    assert (await client.portal.get("/health")).json["slots_in_use"] == 1
    assert (await client.stream.ended(id))["status"] == "Killed"
    client.stream.frames.clear()
    kill(pid)
    assert await told(client, 0) == 0
    assert (await client.run("true"))["status"] == "Completed"


async def test_what_gets_stuck_while_no_client_is_there(client: Agent) -> None:
    """The next start finds its end on the disk, and the slot taken."""
    id, pid = await stuck(client, BECOMES_IT)
    await client.kill(id)
    await client.stop()
    run = client.control(id) / "run"
    while b'"stuck":true' not in run.read_bytes():
        await asyncio.sleep(0)

    await client.start()

    assert (await client.stream.ended(id))["status"] == "Killed"
    assert await told(client, 1) == 1
    client.stream.frames.clear()
    kill(pid)
    assert await told(client, 0) == 0


async def test_without_its_supervisor_nothing_is_stuck(client: Agent) -> None:
    """The next one ends all that is left of the session of this one, as far as it can."""
    id, pid = await stuck(client, BECOMES_IT)
    await client.kill(id)
    await client.stream.ended(id)
    await told(client, 1)
    client.stream.frames.clear()

    os.kill(client.supervisor_pid(), signal.SIGKILL)

    assert await told(client, 0) == 0
    # One with all rights of root.
    assert (await client.run("true"))["status"] == "Completed"
    assert processes.read_stat(pid)[0] in ("", "Z", "X")
