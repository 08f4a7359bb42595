"""What is lost and what is not, when what runs a job dies: attempts, and exit statuses."""

import signal
from pathlib import Path

import pytest

from acceptance.faults.world import (
    PATIENCE,
    eventually,
    kill_container,
    kill_supervisor,
    send_signal,
    supervisor_of,
    world,
)

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)


async def test_a_lost_attempt_is_followed_by_another_up_to_max_attempts(tmp_path: Path) -> None:
    """Then it has Failed, says why, and is no user's fault."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "2"}
    async with world(tmp_path, clients=1, server=server) as there:
        id = await there.upload(script=there.gate().script, ends=("Failed",))
        for attempt in (1, 2):
            await there.begun(id, attempt)
            assert await kill_supervisor(there.clients[0])
        record = await there.portal.ended(id)
        assert record["fault"] == "infrastructure"
        assert "attempt 2 was lost" in record["reason"]
        assert record["exit_code"] is None
        await there.settled()
        assert there.checker.attempts(id) == [1, 2]


async def test_an_exit_status_outlives_the_client(tmp_path: Path) -> None:
    """run.sh ends while its client is dead: its end is the one that counts."""
    async with world(tmp_path, clients=1) as there:
        gates = [there.gate(), there.gate()]
        ids = [
            await there.upload(script=gates[0].script, exit_code=7),
            await there.upload(script=gates[1].script, large=True),
        ]
        for id in ids:
            await there.begun(id)
        await there.clients[0].stop(signal.SIGKILL)
        for gate in gates:
            gate.open()
        await eventually(lambda: not there.strays())
        await there.clients[0].start()
        await there.settled()
        assert not there.checker.run_again()


async def test_an_end_outlives_client_and_supervisor(tmp_path: Path) -> None:
    """The same where nothing of the container is left that saw it end."""
    async with world(tmp_path, clients=1) as there:
        gate = there.gate()
        id = await there.upload(script=gate.script, exit_code=7)
        await there.begun(id)
        await there.clients[0].stop(signal.SIGKILL)
        gate.open()
        await eventually(lambda: not there.strays() and supervisor_of(there.clients[0]) is None)
        await there.clients[0].start()
        await there.settled()
        assert not there.checker.run_again()


async def test_an_order_that_was_heard_late_starts_nothing_twice(tmp_path: Path) -> None:
    """The client dies right after its order to start; the supervisor hears of it only when the
    client is back, and has read from the disk that nothing was started."""
    async with world(tmp_path, clients=1) as there:
        await there.portal.ended(await there.upload())
        supervisor = supervisor_of(there.clients[0])
        assert supervisor is not None
        gate = there.gate()
        send_signal([supervisor], signal.SIGSTOP)
        id = await there.upload(script=gate.script)
        await there.portal.reached(id, "Running")
        await there.clients[0].stop(signal.SIGKILL)
        await there.clients_are_there(0)
        await there.clients[0].start()
        await there.clients_are_there()
        send_signal([supervisor], signal.SIGCONT)
        await there.begun(id)
        await there.portal.ended(await there.upload(label="behind it"))
        gate.open()
        await there.settled()
        assert not there.checker.run_again()


async def test_input_that_is_gone_ends_its_job(tmp_path: Path) -> None:
    """Every retry has an end: what cannot be sent has Failed, and says why."""
    async with world(tmp_path, clients=1) as there:
        await there.proxies[0].down()
        await there.clients_are_there(0)
        id = await there.upload(large=True, ends=("Failed",))
        for file in there.server.folder.glob("server-data/jobs/*/input/content.in"):
            file.unlink()
        await there.proxies[0].up()
        record = await there.portal.ended(id)
        assert (record["fault"], record["status"]) == ("infrastructure", "Failed")
        assert "input damaged" in record["message"]
        await there.settled()


async def test_a_client_that_dies_as_a_whole_uses_up_no_attempt(tmp_path: Path) -> None:
    """Several payloads are lost at once under a new start: the first two times that counts for
    none of them."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    async with world(tmp_path, clients=1, server=server) as there:
        gate = there.gate()
        ids = [await there.upload(script=gate.script) for _ in range(2)]
        for attempt in (1, 2):
            for id in ids:
                await there.begun(id, attempt, within=5)
            await kill_container(there.clients[0])
            await there.clients[0].start()
        gate.open()
        await there.settled()


@pytest.mark.xfail(strict=True, reason="nothing is handed over yet (CLIENT_GONE_AFTER)")
async def test_what_a_client_held_that_is_gone_goes_to_another(tmp_path: Path) -> None:
    """Once it has been silent for CLIENT_GONE_AFTER; its own result is refused when it is back."""
    server = {"CLIENT_GONE_AFTER": "7"}
    async with world(tmp_path, server=server, client={"SLOTS": "1"}) as there:
        gate = there.gate()
        id = await there.upload(script=gate.script)
        await there.begun(id)
        away = there.client_of(await there.portal.job(id))
        there.proxies[away].stall()
        gate.open()
        try:
            await there.ended(within=10)
        finally:
            there.proxies[away].unstall()
        await there.settled()
        assert there.checker.attempts(id) == [1, 2]


@pytest.mark.xfail(strict=True, reason="ON_STOP is no setting yet")
async def test_a_client_that_stops_hands_back_what_it_runs(tmp_path: Path) -> None:
    """ON_STOP=hand-back: Queued again at once, with no attempt used, for another client."""
    server = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}
    client = {"SLOTS": "1", "ON_STOP": "hand-back"}
    async with world(tmp_path, server=server, client=client) as there:
        gate = there.gate()
        id = await there.upload(script=gate.script)
        await there.begun(id)
        away = there.client_of(await there.portal.job(id))
        await there.clients[away].stop()
        gate.open()
        await there.ended(within=3)
        await there.clients[away].start()
        await there.settled()
        assert there.checker.attempts(id) == [1, 2]


@pytest.mark.xfail(strict=True, reason="there is no backup and no restore yet")
async def test_a_backup_is_restored_as_a_generation_of_its_own(tmp_path: Path) -> None:
    """Jobs of before go on, and a job that came after the backup is nobody else's."""
    async with world(tmp_path, clients=1) as there:
        first = await there.upload(large=True)
        await there.portal.ended(first)
        folder = there.server.folder
        assert await there.command("backup", str(tmp_path / "backup")) == 0
        later = await there.upload()
        await there.portal.ended(later)
        await there.kill_server()
        there.checker.works.pop(later)
        for path in (folder / "orch-server.sqlite", folder / "server-data"):
            path.rename(tmp_path / path.name)
        assert await there.command("restore", str(tmp_path / "backup")) == 0
        await there.server.start()
        assert await there.command("resume") == 0
        assert await there.upload() > later
        await there.settled()
