"""Which client is which, whatever disk it has and wherever it answers; and who may share what."""

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from acceptance.faults.load import load
from acceptance.faults.world import (
    PATIENCE,
    SCALE,
    World,
    kill_container,
    processes_in,
    send_signal,
    side_by_side,
    world,
)
from support.faults import Instead, Record, Rule
from support.processes import Program

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)


async def one_job_each(world: World) -> list[int]:
    """A job that runs at each client, and ends once its gate is opened: in their order."""
    jobs = {}
    for _ in world.clients:
        id = await world.upload(script=world.gate().script, label="at the gate")
        record = await world.portal.reached(id, "Running")
        jobs[world.client_of(record)] = id
        await world.begun(id)
    return [jobs[number] for number in range(len(world.clients))]


async def empty_disk(root: Path) -> None:
    """Another instance at a known address: what the former one held is lost, and run again."""
    async with world(root, client={"SLOTS": "1"}) as there:
        jobs = await one_job_each(there)
        await kill_container(there.clients[0])
        shutil.rmtree(there.clients[0].folder / "client-data")
        there.open_gates()
        await there.clients[0].start()
        await there.settled()
        assert there.checker.attempts(jobs[0]) == [1, 2]
        assert there.checker.attempts(jobs[1]) == [1]


async def test_clients_that_come_back_with_each_other_s_disk(tmp_path: Path) -> None:
    """A job belongs to the disk that it lies on: what ran goes on, and nothing is run again."""
    async with world(tmp_path, client={"SLOTS": "1"}) as there:
        await one_job_each(there)
        disks = [str(client.folder / "client-data") for client in there.clients]
        for client in there.clients:
            await client.stop(signal.SIGKILL)
        there.open_gates()
        for client, disk in zip(there.clients, reversed(disks), strict=True):
            client.environment["DATA_PATH"] = disk
            await client.start()
        await there.settled()
        assert not there.checker.run_again()


async def test_clients_that_change_their_addresses(tmp_path: Path) -> None:
    """A job belongs to its client, wherever that answers; the order of the URLs means nothing."""
    async with world(tmp_path) as there:
        uploading = asyncio.create_task(load(there, 16 * SCALE))
        for _ in range(3 * SCALE):
            await there.changes(10, uploading)
            first, second = there.proxies
            first.target, second.target = second.target, first.target
            first.cut()
            second.cut()
        await uploading
        await there.settled()
        assert not there.checker.run_again()


async def test_a_result_that_waits_is_fetched_from_its_client(tmp_path: Path) -> None:
    """It could not be fetched where its client answered; by now another one answers there."""
    broken = b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"
    async with world(tmp_path) as there:
        there.harm(rule := Rule("GET /result answer", Instead(broken)))
        await there.upload(large=True)
        await rule.hit.wait()
        first, second = there.proxies
        first.target, second.target = second.target, first.target
        first.cut()
        second.cut()
        await there.settled()
        assert not there.checker.run_again()


async def test_a_request_that_reaches_another_client_is_not_taken(tmp_path: Path) -> None:
    """Another client answers there already, and the stream of the former one does not show it yet:
    nothing runs at two clients, and nobody's job is killed for another's."""
    async with world(tmp_path) as there:
        jobs, gates = dict[int, int](), [there.gate(), there.gate()]
        for gate in gates:
            ends = ("Killed", "Completed")
            id = await there.upload(script=gate.script, label="at the gate", ends=ends)
            jobs[there.client_of(await there.portal.reached(id, "Running"))] = id
            await there.begun(id)
        first, second = there.proxies
        first.target, second.target = second.target, first.target
        rules = [
            Rule(kind, Record(), times=2) for kind in ("POST /submit answer", "POST /kill answer")
        ]
        first.add(*rules)
        second.add(rules[0])
        terminating = asyncio.create_task(there.terminate(jobs[0]))
        large = [await there.upload(large=True, user_id=2) for _ in range(2)]
        for rule in rules:
            await rule.hit.wait()
        first.cut()
        second.cut()
        await terminating
        for id in large:
            await there.portal.ended(id)
        for gate in gates:
            gate.open()
        await there.settled()
        assert (await there.portal.job(jobs[0]))["status"] == "Killed"
        assert (await there.portal.job(jobs[1]))["status"] == "Completed"
        assert not there.checker.run_again()


async def test_a_client_at_two_addresses_is_used_once(tmp_path: Path) -> None:
    """Its jobs go on without being disturbed, and it gets no more than its slots."""
    async with world(tmp_path) as there:
        await kill_container(there.clients[1])
        there.proxies[1].target = there.proxies[0].target
        there.proxies[1].cut()
        gate = there.gate()
        for _ in range(3):
            await there.upload(script=gate.script)
        await there.portal.reached(1, "Running")
        await there.portal.reached(2, "Running")
        await there.server.logged("the same client")
        assert (await there.portal.job(3))["status"] == "Queued"
        gate.open()
        for _ in range(4 * SCALE):
            await there.upload()
        await there.settled()
        assert not there.checker.run_again()
        cut_off = [line for line in there.server.log if "cut off" in line]
        assert len(cut_off) <= 3, cut_off


async def test_a_second_server_stays_out(tmp_path: Path) -> None:
    """One database and one DATA_PATH have one server: another refuses, and nothing happens."""
    async with world(tmp_path, clients=1) as there:
        folder = there.server.folder
        taken = {"DB_PATH": folder / "orch-server.sqlite", "DATA_PATH": folder / "server-data"}
        for setting in taken:
            paths = {"DB_PATH": tmp_path / "own.sqlite", "DATA_PATH": tmp_path / "own"}
            paths[setting] = taken[setting]
            own = {name: str(path) for name, path in paths.items()}
            second = Program("orch-server", folder, {**there.server.environment, **own})
            await second.spawn("--port", "0")
            assert await second.exited() == 2
            assert setting in second.log[-1]
            assert "in use by an orch-server" in second.log[-1]
        await there.upload()
        await there.settled()


async def test_the_wrong_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    """Database and DATA_PATH of two servers, or one without the other: exit code 2, nothing is
    touched, and what belongs together goes on."""
    async with world(tmp_path, clients=1) as there:
        gate = there.gate()
        running = await there.upload(script=gate.script)
        await there.begun(running)
        await there.portal.ended(await there.upload(large=True))
        await there.kill_server()
        folder, other = there.server.folder, tmp_path / "other"
        stranger = Program("orch-server", other, {})
        await stranger.start()
        assert await stranger.stop() == 0
        empty, missing = tmp_path / "empty", tmp_path / "missing"
        empty.mkdir()
        own = {"DB_PATH": folder / "orch-server.sqlite", "DATA_PATH": folder / "server-data"}
        for wrong in (
            {"DATA_PATH": other / "server-data"},
            {"DATA_PATH": empty},
            {"DATA_PATH": missing},
            {"DB_PATH": other / "orch-server.sqlite"},
            {"DB_PATH": missing},
        ):
            there.server.environment.update(
                {name: str(path) for name, path in {**own, **wrong}.items()}
            )
            before = everything(tmp_path)
            await there.server.spawn("--port", str(there.server.port))
            assert await there.server.exited() == 2, wrong
            assert "_PATH" in there.server.log[-1]
            assert everything(tmp_path) == before, wrong
        there.server.environment.update({name: str(path) for name, path in own.items()})
        await there.server.start()
        gate.open()
        await there.settled()
        assert not there.checker.run_again()


def everything(root: Path) -> dict[str, bytes]:
    """All files of servers, and what is in them, but for the index of SQLite that readers share."""
    found = [*root.glob("server/**/*"), *root.glob("other/**/*"), *root.glob("[em]*")]
    kept = (path for path in found if not path.name.endswith("-shm"))
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in kept}


async def test_a_second_client_stays_out(tmp_path: Path) -> None:
    """One DATA_PATH has one client, also while that one is frozen: another refuses."""
    async with world(tmp_path, clients=1) as there:
        first = there.clients[0]
        gate = there.gate()
        id = await there.upload(script=gate.script)
        await there.portal.reached(id, "Running")
        for number in (signal.SIGSTOP, signal.SIGCONT):
            send_signal([first.pid], number)
            second = Program("orch-client", first.folder, first.environment)
            await second.spawn("--port", "0")
            assert await second.exited() == 2
            assert "DATA_PATH" in second.log[-1]
        gate.open()
        await there.settled()
        assert not there.checker.run_again()


async def frozen(root: Path) -> None:
    """All of it stands still, ten jobs too: the others go on. When it turns again its jobs go on
    where they were."""
    slots = 10
    async with world(root, client={"SLOTS": str(slots)}) as there:
        jobs: dict[int, list[int]] = {0: [], 1: []}
        gate = there.gate()
        for _ in range(2 * slots):
            id = await there.upload(script=gate.script, label="at the gate")
            jobs[there.client_of(await there.portal.reached(id, "Running"))].append(id)
            await there.begun(id)
        assert len(jobs[0]) == slots
        frozen = [*processes_in(there.clients[0].folder)]
        assert len(frozen) >= 2 + slots, "client, supervisor and each run.sh"
        send_signal(frozen, signal.SIGSTOP)
        try:
            gate.open()
            for id in jobs[1]:
                await there.portal.ended(id)
            # They may have been on their way to the frozen one, which then has them.
            beside = [await there.upload(label="beside it", user_id=2) for _ in range(4 * SCALE)]
            for id in jobs[0]:
                await there.portal.reached(id, "Unknown")
            after = [await there.upload(label="after it", user_id=3) for _ in range(4 * SCALE)]
            for id in after:
                record = await there.portal.ended(id)
                assert there.client_of(record) == 1
        finally:
            send_signal(frozen, signal.SIGCONT)
        for id in beside:
            await there.portal.ended(id)
        await there.settled()
        assert not there.checker.run_again()


async def test_a_client_that_is_lost_holds_up_nobody_else(tmp_path: Path) -> None:
    """What it held is Unknown, and what becomes of that depends on who is back."""
    await side_by_side(tmp_path, empty_disk, frozen)
