"""Messages that come late, twice, or in another order than they were sent."""

import asyncio
import signal
from pathlib import Path

import pytest

from acceptance.faults.messages import of_status
from acceptance.faults.world import PATIENCE, SCALE, world
from support.faults import Cut, Hold, Mark, Record, Refuse, Rule, Twice

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

FRAMES = ("submit", "state", "acknowledge")
REQUESTS = ("POST /submit", "POST /kill", "GET /result")


async def test_a_frame_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """No attempt starts twice, and no end is changed by its own repetition."""
    async with world(tmp_path, clients=1) as there:
        rules = [Rule(kind, Twice(), times=20 * SCALE) for kind in FRAMES]
        there.harm(*rules)
        for _ in range(6 * SCALE):
            await there.upload()
        await there.upload(exit_code=3)
        counters = await there.settled()
        assert all(rule.hits for rule in rules), rules
        assert counters.attempts == counters.jobs


async def test_a_late_duplicate_changes_nothing(tmp_path: Path) -> None:
    """Everything that was said of a job is said again once it has ended, and again once its client
    has forgotten it: it stays as it is, and its run.sh is not started again."""
    async with world(tmp_path, clients=1) as there:
        proxy = there.proxies[0]
        frames = [Record() for _ in FRAMES]
        requests = [Record() for _ in REQUESTS]
        for kind, record in zip((*FRAMES, *REQUESTS), (*frames, *requests), strict=True):
            proxy.add(Rule(kind, record, times=100))
        await there.upload()
        await there.upload(large=True)
        killed = await there.upload(script=there.gate().script, ends=("Killed",))
        await there.portal.reached(killed, "Running")
        await there.terminate(killed)
        await there.settled()
        for _ in range(2):
            proxy.rules.clear()
            for record in frames:
                for message in record.messages:
                    proxy.inject(message)
            for record in requests:
                assert record.messages
                for message in record.messages:
                    await proxy.replay(message)
            # What is said behind it is heard after it.
            await there.upload()
            await there.upload(large=True)
            await there.settled()
            assert not there.checker.run_again()
            await there.clients[0].stop(signal.SIGKILL)
            await there.clients[0].start()
            await there.clients_are_there()


async def test_a_submit_that_a_later_one_overtakes(tmp_path: Path) -> None:
    """Whole connections that arrive in another order than they were begun."""
    async with world(tmp_path) as there:
        first = Hold()
        there.harm(
            Rule("POST /submit", first),
            Rule("POST /submit", Mark(first.go), skip=2),
            Rule("GET /result", answer := Hold()),
            Rule("GET /result", Mark(answer.go), skip=1),
        )
        for _ in range(4 * SCALE):
            await there.upload(large=True)
        counters = await there.settled()
        assert counters.attempts == counters.jobs


async def test_a_repeated_submit_that_fails_proves_nothing_of_the_first(tmp_path: Path) -> None:
    """The client has the attempt, but its answer was cut off; the repetition surely does not
    arrive: that gives the job to nobody else."""
    async with world(tmp_path) as there:
        told = Hold()
        there.harm(
            # Longer than fits on the way: this one cannot have been received.
            again := Rule("POST /submit", Refuse(), skip=1),
            Rule("POST /submit answer", Cut(0)),
            Rule("state", told, where=of_status("Prepared", "Running")),
        )
        await there.upload(size=16 * 2**20)
        async with asyncio.timeout(PATIENCE):
            await again.hit.wait()
        told.go.set()
        await there.ended()
        assert not there.checker.run_again()
        await there.settled()
