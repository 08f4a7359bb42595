"""A disk is full, at the server or at a client: a clear answer, no damage, and on with it."""

import asyncio
import signal
from pathlib import Path

import pytest

from acceptance.faults.disks import small_disk
from acceptance.faults.world import (
    LOOK,
    PATIENCE,
    SCALE,
    World,
    eventually,
    send_signal,
    supervisor_of,
    world,
)
from support.faults import Hold, Rule

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

#: The least that these tests leave on a disk that is not quite full: less than a large job.
LITTLE = 48 * 1024
#: All that a job does, before it waits.
ALL_DONE = (
    "cat token.in > token.out; if [ -f content.in ]; then mv content.in content.out; fi; touch done"
)


async def upload_once(world: World, *, large: bool) -> int:
    """One upload, whatever the answer: its HTTP status."""
    own = world.work(large=large)
    files = dict(own.files)
    return (await world.portal.try_upload(files)).status


async def test_an_upload_that_finds_no_room_is_refused(tmp_path: Path) -> None:
    """507, and nothing is left of it; once there is room the next one is taken."""
    with small_disk(tmp_path / "server", 24) as disk:
        async with world(tmp_path, clients=1) as there:
            accepted = 0
            for large in (False, True):
                await there.upload(large=large)
                await there.settled()
                disk.fill(LITTLE if large else 0)
                statuses = [await upload_once(there, large=large) for _ in range(12 * SCALE)]
                # The log of the database may have room for a few small ones.
                assert set(statuses) <= {201, 507}
                assert statuses[-1] == 507
                assert (await there.portal.get("/live")).status == 200
                accepted += statuses.count(201)
                disk.free()
            await there.upload()
            counters = await there.settled()
            page = (await there.portal.get("/jobs?limit=500")).json["jobs"]
            assert len(page) == counters.jobs + accepted


async def test_a_result_that_finds_no_room_waits(tmp_path: Path) -> None:
    """It stays at its client until the server has room, and costs no attempt."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    with small_disk(tmp_path / "server", 24) as disk:
        async with world(tmp_path, clients=1, server=server) as there:
            gate = there.gate()
            ids = [await there.upload(script=gate.script, large=large) for large in (False, True)]
            for id in ids:
                await there.begun(id)
            disk.fill()
            gate.open()
            await there.server.logged("cannot be fetched|could not|no room|disk is full")
            disk.free()
            await there.settled()


async def test_a_server_whose_disk_fills_up_under_load_loses_nothing(tmp_path: Path) -> None:
    """Again and again, in uploads, results and commits alike."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    with small_disk(tmp_path / "server", 24) as disk:
        async with world(tmp_path, server=server) as there:

            async def portal(user_id: int) -> None:
                for number in range(6 * SCALE):
                    await there.upload(large=number % 3 == 0, user_id=user_id)

            async def trouble() -> None:
                while True:
                    await asyncio.sleep(there.random.uniform(0, 0.3))
                    disk.fill(there.random.choice([0, LITTLE]))
                    await asyncio.sleep(there.random.uniform(0, 0.3))
                    disk.free()

            filling = asyncio.create_task(trouble())
            await asyncio.gather(*(portal(user_id) for user_id in range(1, 4)))
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
            disk.free()
            await there.settled()


async def test_a_submit_that_finds_no_room_waits_at_the_server(tmp_path: Path) -> None:
    """Queued, with the reason; no attempt is lost, and nothing is run twice."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    with small_disk(tmp_path / "client0", 8) as disk:
        async with world(tmp_path, clients=1, server=server) as there:
            for large in (False, True):
                await there.upload()
                await there.settled()
                disk.fill()
                id = await there.upload(large=large)
                async with asyncio.timeout(PATIENCE):
                    # Between two tries it is, for a moment, on its way again.
                    while ((await there.portal.job(id))["waiting"] or {}).get("code") != "disk":
                        await asyncio.sleep(LOOK)
                disk.free()
                await there.settled()
                assert len(there.checker.attempts(id)) == 1


async def test_a_run_that_finds_no_room_is_not_lost(tmp_path: Path) -> None:
    """The disk is full from the moment at which the client has the job: that is no attempt that
    was lost, and the job goes on once there is room."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    with small_disk(tmp_path / "client0", 8) as disk:
        async with world(tmp_path, clients=1, server=server) as there:
            await there.upload()
            await there.settled()
            client = there.clients[0]
            supervisor = supervisor_of(client)
            assert supervisor is not None
            gate = there.gate()
            send_signal([supervisor], signal.SIGSTOP)
            id = await there.upload(script=gate.script)
            await there.portal.reached(id, "Running")
            disk.fill()
            send_signal([supervisor], signal.SIGCONT)
            await eventually(
                lambda: there.checker.attempts(id) or "No space" in "".join(client.log)
            )
            disk.free()
            gate.open()
            await there.settled()


async def test_an_exit_status_needs_no_room(tmp_path: Path) -> None:
    """The disk is full while run.sh runs, and its client dies: it ends as it did."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    with small_disk(tmp_path / "client0", 8) as disk:
        async with world(tmp_path, clients=1, server=server) as there:
            gate = there.gate()
            script = f"{ALL_DONE}; {gate.script}; exit 5"
            await there.upload(script=script, exit_code=5)
            await eventually(lambda: list(disk.path.glob("client-data/work/*/job/done")))
            disk.fill()
            await there.clients[0].stop(signal.SIGKILL)
            gate.open()
            await eventually(lambda: not there.strays())
            disk.free()
            await there.clients[0].start()
            await there.settled()


async def test_packing_that_finds_no_room_is_done_again(tmp_path: Path) -> None:
    """The end of a payload waits until there is room; no attempt is lost by it."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    with small_disk(tmp_path / "client0", 8) as disk:
        async with world(tmp_path, clients=1, server=server) as there:
            gate = there.gate()
            script = f"{ALL_DONE}; {gate.script}; exit 0"
            ids = [await there.upload(script=script, large=large) for large in (False, True)]
            for id in ids:
                await there.begun(id)
            await eventually(lambda: len(list(disk.path.glob("client-data/work/*/job/done"))) == 2)
            disk.fill()
            gate.open()
            await there.clients[0].logged("cannot be packed yet")
            disk.free()
            await there.settled()


async def test_what_is_acknowledged_goes_from_a_full_disk(tmp_path: Path) -> None:
    """Dropping files needs no room: a disk that is full gets free again by it."""
    with small_disk(tmp_path / "client0", 8) as disk:
        async with world(tmp_path, clients=1) as there:
            hold = Hold()
            there.harm(rule := Rule("acknowledge", hold))
            await there.upload(large=True)
            await rule.hit.wait()
            disk.fill()
            hold.go.set()
            await there.ended()
            await eventually(lambda: not list(disk.path.glob("client-data/payloads/*/result.zip")))
            disk.free()
            await there.clients[0].stop()
            await there.clients[0].start()
            await there.settled()
