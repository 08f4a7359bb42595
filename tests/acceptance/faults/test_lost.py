"""What is lost and what is not, when what runs a job dies: attempts, and exit statuses."""

import asyncio
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from acceptance.faults.world import (
    PATIENCE,
    Gate,
    World,
    eventually,
    kill_container,
    kill_supervisor,
    send_signal,
    side_by_side,
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
        starting = asyncio.create_task(there.clients[0].start())
        send_signal([supervisor], signal.SIGCONT)
        await starting
        await there.clients_are_there()
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


async def full_clients(world: World, count: int) -> tuple[int, dict[int, Gate], dict[int, Gate]]:
    """Each client has so many jobs that wait, in their first attempt: the number of one of them,
    its jobs with their gates, and those of the other."""
    jobs: dict[int, dict[int, Gate]] = {0: {}, 1: {}}
    for _ in range(2 * count):
        gate = world.gate()
        script = f'[ "$ORCH_ATTEMPT" != 1 ] || {gate.script}'
        id = await world.upload(script=script, label="at the gate")
        client = world.client_of(await world.portal.reached(id, "Running"))
        jobs[client][id] = gate
        await world.begun(id)
    assert len(jobs[0]) == len(jobs[1])
    away = world.random.randrange(2)
    return away, jobs[away], jobs[1 - away]


async def handed_over(world: World, ids: Iterable[int]) -> None:
    """Wait until another client runs these jobs."""
    for id in ids:
        await world.begun(id, 2)


async def gone_for_too_long(root: Path) -> None:
    """After CLIENT_GONE_AFTER: what ended there meanwhile has an old result, which is refused,
    and what still runs there is killed first."""
    async with world(root, server={"CLIENT_GONE_AFTER": "7"}) as there:
        away, gone, others = await full_clients(there, 2)
        there.proxies[away].stall()
        for gate in (next(iter(gone.values())), *others.values()):
            gate.open()
        await handed_over(there, gone)
        await there.ended()
        there.proxies[away].unstall()
        await there.settled()
        for id in gone:
            assert there.checker.attempts(id) == [1, 2]
        for id in others:
            assert there.checker.attempts(id) == [1]


async def gone_with_nobody_else(root: Path) -> None:
    """No other client has a slot: its jobs stay bound to it, and go on when it is back."""
    async with world(root, server={"CLIENT_GONE_AFTER": "7"}) as there:
        away, gone, _ = await full_clients(there, 2)
        there.proxies[away].stall()
        await there.server.logged("is gone: job")
        there.proxies[away].unstall()
        await there.clients_are_there()
        for id in gone:
            await there.portal.reached(id, "Running")
        there.open_gates()
        await there.settled()
        assert not there.checker.run_again()


async def gone_by_hand(root: Path) -> None:
    """`orch-server client gone`: what a lost client has goes over without waiting any longer."""
    async with world(root) as there:
        away, gone, others = await full_clients(there, 1)
        there.proxies[away].stall()
        for gate in others.values():
            gate.open()
        for id in gone:
            await there.portal.reached(id, "Unknown")
        await there.command("client", "gone", there.proxies[away].url)
        await handed_over(there, gone)
        there.proxies[away].unstall()
        await there.settled()
        assert not [id for id in others if len(there.checker.attempts(id)) > 1]


async def gone_against_a_wish(root: Path) -> None:
    """A job whose end is wished is not handed over, but Killed; back, its client kills it."""
    async with world(root, server={"CLIENT_GONE_AFTER": "7"}) as there:
        script = there.gate().script
        id = await there.upload(label="wished", script=script, ends=("Killed",))
        await there.begun(id)
        away = there.client_of(await there.portal.job(id))
        there.proxies[away].stall()
        assert (await there.terminate(id)).status == 202
        await there.ended()
        there.proxies[away].unstall()
        await there.settled()
        assert there.checker.attempts(id) == [1]


async def test_what_a_client_held_that_is_gone_goes_to_another(tmp_path: Path) -> None:
    """However it comes to be gone, and whatever it held."""
    await side_by_side(
        tmp_path, gone_for_too_long, gone_with_nobody_else, gone_by_hand, gone_against_a_wish
    )


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
        await there.ended()
        assert there.checker.attempts(id) == [1, 2]
        await there.clients[away].start()
        await there.settled()
