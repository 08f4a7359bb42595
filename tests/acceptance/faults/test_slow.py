"""Connections that stay open and say nothing, or hardly anything."""

import asyncio
from pathlib import Path

import pytest

from acceptance.faults.messages import ALL, KILLS
from acceptance.faults.world import PATIENCE, SCALE, World, side_by_side, world
from support.faults import Delay, Drop, Flip, Rule, Slow, Stall

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

#: Messages on the stream, which is given up as a whole.
ON_STREAM = [target for target in ALL if " " not in target.kind]
#: Requests that are transfers.
REQUESTS = [target for target in ALL if "/" in target.kind and "stream" not in target.kind]

ONE_ATTEMPT = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}


async def some_jobs(world: World) -> None:
    """A job of each kind, one of them to be killed, and streams that are opened again."""
    gate = world.gate()
    killed = await world.upload(label="killed", script=world.gate().script, ends=("Killed",))
    waiting = await world.upload(label="waiting", script=gate.script)
    for id in (killed, waiting):
        await world.portal.reached(id, "Running")
    for proxy in world.proxies:
        proxy.cut()
    gate.open()
    terminating = asyncio.create_task(world.terminate(killed))
    for _ in range(2):
        await world.upload()
        await world.upload(large=True)
    await terminating


async def test_a_slow_connection_is_waited_for(tmp_path: Path) -> None:
    """1 KB/s is no silence: nothing is given up, and nothing sent twice."""
    async with world(tmp_path, clients=1) as there:
        rules = [target.rule(Slow(1024, 1024 * SCALE)) for target in (*ALL, *KILLS)]
        there.harm(*rules)
        await some_jobs(there)
        await there.settled()
        assert all(rule.hits for rule in rules), [rule for rule in rules if not rule.hits]
        assert not there.checker.run_again()


@pytest.mark.faults
async def test_a_late_connection_is_waited_for(tmp_path: Path) -> None:
    """The same where every message takes its time before anything of it arrives."""
    async with world(tmp_path, clients=1) as there:
        rules = [target.rule(Delay(0.3 * SCALE)) for target in (*ALL, *KILLS)]
        there.harm(*rules)
        await some_jobs(there)
        await there.settled()
        assert all(rule.hits for rule in rules), [rule for rule in rules if not rule.hits]
        assert not there.checker.run_again()


async def stalled_requests(root: Path) -> None:
    """A transfer is given up after 30 s without a byte."""
    async with world(root, clients=4, server=ONE_ATTEMPT) as there:
        rules = [target.rule(Stall(place)) for target in REQUESTS for place in (0, 0.5)]
        rules.append(REQUESTS[0].rule(Drop(0.5, 100)))
        there.harm(*rules)
        for _ in range(2 * len(rules)):
            await there.upload(large=True)
        await there.settled()
        assert all(rule.hits for rule in rules), [rule for rule in rules if not rule.hits]
        assert not there.checker.run_again()


async def stalled_kills(root: Path) -> None:
    """A kill that has no answer after 10 s is told again."""
    async with world(root, server=ONE_ATTEMPT) as there:
        rules = [target.rule(Stall(place)) for target in KILLS for place in (0, 0.5)]
        there.harm(*rules)
        ids = [
            await there.upload(label="killed", script=there.gate().script, ends=("Killed",))
            for _ in range(4)
        ]
        for id in ids:
            await there.portal.reached(id, "Running")
        for answer in await asyncio.gather(*(there.terminate(id) for id in ids)):
            assert answer.status in (200, 202), answer
        await there.settled()
        assert all(rule.hits for rule in rules), [rule for rule in rules if not rule.hits]


async def stalled_streams(root: Path) -> None:
    """A stream on which no heartbeat comes is a stream that is lost, in whatever message."""
    async with world(root, clients=len(ON_STREAM), client={"SLOTS": "1"}) as there:
        gate = there.gate()
        for _ in ON_STREAM:
            id = await there.upload(script=gate.script)
            await there.portal.reached(id, "Running")
        rules = [target.rule(Stall(0.5)) for target in ON_STREAM]
        for proxy, target, rule in zip(there.proxies, ON_STREAM, rules, strict=True):
            proxy.add(rule)
            if target.way == "reconnect":
                proxy.cut()
        gate.open()
        for _ in range(2 * len(ON_STREAM)):
            await there.upload()
        await there.settled()
        assert all(rule.hits for rule in rules), [rule for rule in rules if not rule.hits]
        assert not there.checker.run_again()


async def damaged_result(root: Path) -> None:
    """Five times wrong with the client reachable: that attempt is lost, and no other is left."""
    async with world(root, clients=1, server=ONE_ATTEMPT) as there:
        there.harm(Rule("GET /result answer", Flip(0.5), times=1000))
        id = await there.upload(label="damaged", large=True, ends=("Failed",))
        assert (await there.portal.ended(id))["fault"] == "infrastructure"
        await there.settled()


async def test_a_stream_that_stalls_is_given_up_and_opened_again(tmp_path: Path) -> None:
    """In whatever message: nobody waits for longer than CLIENT_LOST_AFTER."""
    await stalled_streams(tmp_path)


@pytest.mark.faults
async def test_what_stalls_is_given_up_and_made_again(tmp_path: Path) -> None:
    """Nobody waits for longer than the silence that is allowed; and what never gets through does
    not hold up its job for good."""
    await side_by_side(tmp_path, stalled_kills, stalled_requests, damaged_result)
