"""Somebody sets the clock: nothing is lost, too old or out of order because of that."""

import asyncio
import signal
from pathlib import Path

import pytest

from acceptance.faults.clocks import WallClock
from acceptance.faults.load import load
from acceptance.faults.world import PATIENCE, SCALE, World, world

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

HOUR = 3600


async def durations_are_true(world: World) -> None:
    """No run took longer than its test, nor less than no time."""
    for id in world.checker.works:
        wall = (await world.portal.job(id))["wall_s"]
        assert wall is None or 0 <= wall < HOUR / 2, (id, wall)


@pytest.mark.parametrize(
    "seconds",
    [-HOUR, pytest.param(24 * HOUR, marks=pytest.mark.faults)],
    ids=["an hour back", "a day ahead"],
)
async def test_a_clock_that_is_set_under_load_changes_nothing(tmp_path: Path, seconds: int) -> None:
    """Jobs come, run and end; then server and a client die, and start under the new time."""
    clock = WallClock(tmp_path)
    own = clock.environment
    server = {**own, "SERVICE_EXAMPLE_MAX_ATTEMPTS": "1", "SERVICE_EXAMPLE_MAX_RUNTIME": "1000"}
    async with world(tmp_path, server=server, client={**own, "JOB_TIMEOUT": "1000"}) as there:
        gate = there.gate()
        ids = [await there.upload(script=gate.script) for _ in range(2)]
        for id in ids:
            await there.begun(id)
        uploading = asyncio.create_task(load(there, 8 * SCALE))
        await there.changes(10, uploading)
        clock.set(seconds)
        await there.changes(10, uploading)
        await there.kill_server()
        await there.server.start()
        client = there.random.choice(there.clients)
        await client.stop(signal.SIGKILL)
        await client.start()
        gate.open()
        await uploading
        await there.settled()
        assert not there.checker.run_again()
        await durations_are_true(there)


async def test_a_clock_that_jumps_ahead_makes_nothing_too_old(tmp_path: Path) -> None:
    """No result goes before its time, no client counts as silent, and /health says what is so."""
    clock = WallClock(tmp_path)
    server = {**clock.environment, "MAX_AGE": str(2 * HOUR), "CLEANER_INTERVAL": "0.1"}
    client = {**clock.environment, "MAX_AGE": str(2 * HOUR)}
    async with world(tmp_path, clients=1, server=server, client=client) as there:
        gate = there.gate()
        running = await there.upload(script=gate.script)
        await there.begun(running)
        for large in (False, True):
            await there.portal.ended(await there.upload(large=large))
        clock.set(24 * HOUR)
        await there.server.logged("the clock jumped ahead")
        answer = await there.portal.get("/health")
        assert (answer.status, "the clock jumped ahead" in answer.body.decode()) == (503, True)
        await there.upload()
        gate.open()
        await there.settled()
        for id in there.checker.works:
            assert (await there.portal.get(f"/download/{id}")).status == 200
        assert not [line for line in there.server.log if "is lost" in line or "cut off" in line]
        await durations_are_true(there)
