"""A wall clock that somebody sets makes no payload old."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client.keys import CLEANER
from orchestrator_shared.clocks import Clock
from support.agent import Agent, Clocks, agent

DAY = 86400.0


@pytest.fixture
def clocks() -> Clocks:
    """Both clocks."""
    return Clocks()


@pytest.fixture
async def client(
    tmp_path: Path, session: aiohttp.ClientSession, clocks: Clocks
) -> AsyncIterator[Agent]:
    """A client that keeps what nobody claims for two days."""
    async with agent(tmp_path / "client", session, unclaimed_max_age=2 * DAY) as own:
        own.clock = clocks.make()
        await own.restart()
        yield own


async def cleaned(client: Agent) -> int:
    """How many payloads go now for their age."""
    return await client.app[CLEANER].run_once()


@pytest.mark.parametrize("jump", [3700.0, 10 * DAY, 10_000 * DAY])
async def test_a_jump_ahead_removes_nothing_for_an_hour(
    client: Agent, clocks: Clocks, jump: float
) -> None:
    """And /health says so as soon as it is asked."""
    payload = await client.run("true")
    clocks.go_on(2 * DAY - 3500)
    clocks.wall += jump

    health = await client.portal.get("/health")
    assert health.status == 503
    assert "clock jumped ahead" in health.json["problems"][0]
    assert await cleaned(client) == 0
    clocks.go_on(3599)
    assert await cleaned(client) == 0
    assert (await client.retrieve(payload["id"])).status == 200
    clocks.go_on(2)
    assert (await client.portal.get("/health")).status == 200
    assert await cleaned(client) == 1


async def test_a_jump_that_is_taken_back_has_no_effect(client: Agent, clocks: Clocks) -> None:
    """The clock is as it was: there is nothing to wait for."""
    await client.run("true")
    clocks.wall += 10 * DAY
    assert await cleaned(client) == 0

    clocks.wall -= 10 * DAY

    assert (await client.portal.get("/health")).status == 200
    assert await cleaned(client) == 0
    clocks.go_on(2 * DAY + 1)
    assert await cleaned(client) == 1


@pytest.mark.parametrize("back", [3600.0, 10_000 * DAY])
async def test_a_clock_that_is_set_back_changes_no_age(
    client: Agent, clocks: Clocks, back: float
) -> None:
    """What had ended before is no younger for it, what ends after is no older."""
    await client.run("true")
    clocks.go_on(DAY)
    clocks.wall -= back
    await client.run("true")

    clocks.go_on(DAY - 1)
    assert await cleaned(client) == 0
    clocks.go_on(2)
    assert await cleaned(client) == 1
    clocks.go_on(DAY - 2)
    assert await cleaned(client) == 0
    clocks.go_on(2)
    assert await cleaned(client) == 1


def test_a_clock_that_was_wrong_for_a_while_is_no_jump(clocks: Clocks) -> None:
    """Set back and set right again: it is where it would have been."""
    clock = clocks.make()
    clocks.wall -= 10 * DAY
    clocks.go_on(60)
    assert clock.trusted
    clocks.wall += 10 * DAY

    assert clock.trusted
    assert clock.now() == pytest.approx(clocks.wall)


def test_small_steps_ahead_are_followed_at_once(clocks: Clocks) -> None:
    """An hour at most each."""
    clock = clocks.make()
    for _ in range(5):
        clocks.wall += 3600
        assert clock.trusted
        assert clock.now() == pytest.approx(clocks.wall)


def test_a_jump_is_logged_once(clocks: Clocks, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is looked at."""
    clock = clocks.make()
    clocks.wall += 2 * DAY
    with caplog.at_level(logging.WARNING):
        assert [clock.trusted, clock.trusted] == [False, False]
        assert clock.problem is not None

    assert len(caplog.records) == 1


def test_the_clock_of_the_system_is_the_default() -> None:
    """Without a test it goes by what there is."""
    clock = Clock()
    before = clock.now()

    assert clock.trusted
    assert clock.problem is None
    assert clock.now() >= before
