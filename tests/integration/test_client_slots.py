"""How many payloads run at a time, which is next, and what is left of one that has ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client import processes
from support.agent import Agent, agent
from support.gate import Gate
from support.limits import open_descriptors


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client whose Runner wakes by itself once an hour: what starts sooner was woken."""
    async with agent(tmp_path / "client", session, slots=2, runner_interval=3600.0) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


def children(pid: int) -> dict[int, str]:
    """The processes that another one has to collect, and the state of each."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = processes.read_stat(int(child))[0]
    return found


async def test_never_more_than_slots_run(client: Agent, gate: Gate) -> None:
    """The others wait as Prepared; each runs as soon as one has ended."""
    for _ in range(6):
        await client.submit(gate.wait)

    for waiting in (4, 3, 2, 1, 0):
        # Two are at the gate, and none else is on its way there.
        if waiting == 4:
            await gate.reached()
        await gate.reached()
        found: list[str] = []
        # Those that were let through run until they are packed.
        while len(found) < 6 or found.count("Completed") < 4 - waiting:
            async with client.follow() as look:
                await look.kind("listed")
            found = [frame.payload["status"] for frame in look.frames if frame.kind == "state"]
        assert found.count("Running") == 2
        assert found.count("Prepared") == waiting
        assert (await client.portal.get("/health")).json["slots_in_use"] == 2
        gate.open()
    gate.open()
    gate.close()


async def test_the_oldest_goes_first(client: Agent, gate: Gate) -> None:
    """In the order in which they came, whichever server sent them."""
    await client.restart(slots=1)
    for job in range(1, 9):
        await client.submit(gate.wait, job=job, server=f"server {job % 3}")

    order = []
    for _ in range(8):
        order.append(await gate.reached())
        gate.open()

    assert order == list(range(1, 9))
    gate.close()


async def test_a_burst_keeps_to_the_slots(client: Agent, tmp_path: Path) -> None:
    """Forty short ones: each looks how many others run at that moment."""
    await client.restart(slots=3)
    script = f"""
    touch {tmp_path}/here.$$
    ls {tmp_path} | grep -c here > {tmp_path}/count.$$
    rm {tmp_path}/here.$$
    """
    payloads = await asyncio.gather(*(client.submit(script) for _ in range(40)))
    ends = [await client.stream.ended(payload["id"]) for payload in payloads]

    counts = [int(path.read_text()) for path in tmp_path.glob("count.*")]
    assert {end["status"] for end in ends} == {"Completed"}
    assert len(counts) == 40
    assert max(counts) <= 3


async def test_a_killed_one_gives_its_slot_back(client: Agent, gate: Gate) -> None:
    """What waits starts at once."""
    running = [await client.submit(gate.wait) for _ in range(2)]
    for _ in running:
        await gate.reached()
    await client.submit(gate.wait)

    await client.kill(running[0]["id"])

    await gate.reached()
    gate.open(2)
    gate.close()


async def test_no_zombie_stays(client: Agent, gate: Gate) -> None:
    """Neither of run.sh nor of what it left to others, at the client or its supervisor."""
    leave_behind = "(sleep 1000 &) ; (setsid true &); (true &); bash -c 'exit 3' & exit 0"
    for script in ("true", "kill -9 $$", leave_behind, leave_behind):
        await client.run(script)
    await client.submit(gate.wait)
    await gate.reached()

    pid = client.supervisor_pid()
    # An orphan may end a moment later than run.sh: it is collected once it has.
    while len(children(pid)) > 1:
        await client.portal.get("/live")

    assert "Z" not in children(pid).values()
    assert children(os.getpid()).get(pid) not in ("", "Z", None)
    gate.close()


async def test_payloads_cost_no_descriptors(client: Agent) -> None:
    """Neither here nor in the supervisor: many small ones leave none open."""

    def opened() -> tuple[int, int]:
        return (
            len(open_descriptors()),
            len(list(Path(f"/proc/{client.supervisor_pid()}/fd").iterdir())),
        )

    for _ in range(5):
        await client.run("true")
    before = opened()
    for _ in range(50):
        await client.run("true")

    # It lets go of each some seconds after it has told of its end.
    while max(now - then for now, then in zip(opened(), before, strict=True)) > 0:
        await client.portal.get("/live")


async def test_ends_that_wait_for_their_fsync_leave_files_to_others(client: Agent) -> None:
    """Where few may be open, more runs than that end within a moment, and each can begin."""
    await client.restart(open_files=40)
    for _ in range(60):
        assert (await client.run("true"))["status"] == "Completed"
