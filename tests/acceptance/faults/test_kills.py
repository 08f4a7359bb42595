"""kill -9 of each process, and of several at once, while jobs come, run and end."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from acceptance.faults.load import load
from acceptance.faults.world import (
    PATIENCE,
    SCALE,
    World,
    kill_container,
    kill_supervisor,
    world,
)

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

JOBS = 20 * SCALE
KILLS = 3 * SCALE


async def kill_server(world: World) -> None:
    """The server dies, and is started again."""
    await world.kill_server()
    await world.server.start()


async def kill_a_client(world: World) -> None:
    """One client dies, and is started again; its supervisor and its jobs live on."""
    client = world.random.choice(world.clients)
    await client.stop(signal.SIGKILL)
    await client.start()


async def kill_a_supervisor(world: World) -> None:
    """One supervisor dies; its client starts another."""
    await kill_supervisor(world.random.choice(world.clients))


async def kill_a_container(world: World) -> None:
    """A client dies with its supervisor and its jobs, and is started again."""
    client = world.random.choice(world.clients)
    await kill_container(client)
    await client.start()


async def kill_both(world: World) -> None:
    """The server and one client die at once; which of them is back first is a matter of chance."""
    client = world.random.choice(world.clients)
    await asyncio.gather(world.kill_server(), client.stop(signal.SIGKILL))
    both = [world.server, client]
    world.random.shuffle(both)
    for program in both:
        await program.start()


async def kill_any(world: World) -> None:
    """Any of these."""
    deaths = (kill_server, kill_a_client, kill_a_supervisor, kill_a_container, kill_both)
    await world.random.choice(deaths)(world)


@pytest.mark.parametrize(
    "kill",
    [
        kill_server,
        kill_a_client,
        kill_a_supervisor,
        kill_a_container,
        kill_any,
        pytest.param(kill_both, marks=pytest.mark.faults),
    ],
    ids=lambda kill: kill.__name__,
)
async def test_every_job_ends_once_whatever_dies(
    tmp_path: Path, kill: Callable[[World], Awaitable[None]]
) -> None:
    """Under load, at any moment, again and again: nothing is lost, and no attempt runs twice."""
    async with world(tmp_path) as there:
        uploading = asyncio.create_task(load(there, JOBS))
        for _ in range(KILLS):
            await there.changes(there.random.randint(1, 4 * JOBS // KILLS), uploading)
            await kill(there)
        await uploading
        counters = await there.settled()
        assert counters.kept
        if kill is kill_server:
            assert not there.checker.run_again(), "no job is run again because the server died"
