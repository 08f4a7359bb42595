"""The background task: when it turns, what an error does to it, and how it ends."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from orchestrator_shared import tasks
from orchestrator_shared.errors import Unavailable
from orchestrator_shared.tasks import BackgroundTask

#: An interval that no test lives to see.
NEVER = 3600.0


@contextlib.asynccontextmanager
async def turning(
    run_once: Callable[[], Awaitable[int]], interval: float = NEVER
) -> AsyncIterator[BackgroundTask]:
    """A task that turns."""
    task = BackgroundTask("sweeper", run_once, interval)
    await task.start()
    try:
        yield task
    finally:
        await task.stop()


class Ticks:
    """A run_once whose ticks can be waited for; each handles as many as it is told to."""

    def __init__(self, *handled: int | Exception) -> None:
        self.count = 0
        self._handled = list(handled)
        self._ticks: asyncio.Queue[int] = asyncio.Queue()

    async def __call__(self) -> int:
        """One tick."""
        self.count += 1
        self._ticks.put_nowait(self.count)
        outcome = self._handled.pop(0) if self._handled else 0
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def next(self) -> int:
        """Wait for the next one."""
        return await self._ticks.get()


async def test_it_looks_at_once_and_then_sleeps() -> None:
    """The start is a reason to look; nothing to do is a reason to sleep."""
    ticks = Ticks()
    async with turning(ticks) as task:
        await ticks.next()
        for _ in range(10):
            await asyncio.sleep(0)

        assert ticks.count == 1
        assert task.problem is None


async def test_it_turns_when_woken() -> None:
    """Each time anew."""
    ticks = Ticks()
    async with turning(ticks) as task:
        await ticks.next()
        for number in (2, 3):
            task.wake()
            assert await ticks.next() == number


async def test_it_turns_at_its_interval() -> None:
    """Without anybody waking it."""
    ticks = Ticks()
    async with turning(ticks, interval=0.01):
        assert [await ticks.next() for _ in range(4)] == [1, 2, 3, 4]


async def test_it_looks_again_after_it_handled_something() -> None:
    """Until there is nothing more."""
    ticks = Ticks(3, 1, 0)
    async with turning(ticks):
        assert [await ticks.next() for _ in range(3)] == [1, 2, 3]


async def test_a_wake_during_a_tick_is_not_lost() -> None:
    """What came up meanwhile is looked at right after."""
    begun, go = asyncio.Event(), asyncio.Event()
    count = 0

    async def run_once() -> int:
        nonlocal count
        count += 1
        begun.set()
        await go.wait()
        return 0

    async with turning(run_once) as task:
        await begun.wait()
        task.wake()
        begun.clear()
        go.set()
        await begun.wait()

        assert count == 2


async def test_many_wakes_are_one() -> None:
    """Who wakes it need not know whether somebody else has."""
    ticks = Ticks()
    async with turning(ticks) as task:
        await ticks.next()
        for _ in range(5):
            task.wake()
        await ticks.next()
        for _ in range(10):
            await asyncio.sleep(0)

        assert ticks.count == 2


async def test_an_error_is_logged_and_counted_and_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next tick comes at its time, not at once: an error that stays is no busy loop."""
    ticks = Ticks(ValueError("broken"), OSError("again"))
    async with turning(ticks) as task:
        await ticks.next()
        for _ in range(10):
            await asyncio.sleep(0)
        assert (ticks.count, task.errors, task.last_error) == (1, 1, "ValueError: broken")

        task.wake()
        await ticks.next()
        task.wake()
        await ticks.next()

        assert (task.errors, task.last_error) == (2, "OSError: again")
        assert task.problem is None
    logged = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage() for r in logged] == ["the sweeper failed, and goes on"] * 2
    assert all(r.exc_info for r in logged)


async def test_what_is_only_in_the_way_just_now_has_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that somebody else locks is no fault of ours: a line says so, and it goes on."""
    ticks = Ticks(Unavailable(problem="somebody else locks the database"))
    async with turning(ticks) as task:
        await ticks.next()
        task.wake()
        await ticks.next()
        assert task.errors == 1
    (logged,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "somebody else locks the database" in logged.getMessage()
    assert not logged.exc_info


async def test_it_can_be_started_and_stopped_twice() -> None:
    """A second start or stop changes nothing; after a stop it can be started again."""
    ticks = Ticks()
    task = BackgroundTask("sweeper", ticks, NEVER)
    await task.stop()
    for round_ in (1, 2):
        await task.start()
        await task.start()
        assert await ticks.next() == round_
        await asyncio.gather(task.stop(), task.stop())
        await task.stop()
        assert task.problem is None
        task.wake()
        for _ in range(10):
            await asyncio.sleep(0)
        assert ticks.count == round_


async def test_stop_lets_the_tick_under_way_finish() -> None:
    """What it has begun is done when stop returns, and nothing new is begun."""
    begun, go = asyncio.Event(), asyncio.Event()
    done = 0

    async def run_once() -> int:
        nonlocal done
        begun.set()
        await go.wait()
        done += 1
        return 1

    async with turning(run_once) as task:
        await begun.wait()
        stopping = asyncio.create_task(task.stop())
        await asyncio.sleep(0)
        go.set()
        await stopping

        assert done == 1


async def test_stop_cancels_a_tick_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its patience, and it waits for what the tick does about that."""
    monkeypatch.setattr(tasks, "STOP_PATIENCE", 0.01)
    begun = asyncio.Event()
    cancelled = []

    async def run_once() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            cancelled.append(True)
            raise
        return 0

    async with turning(run_once) as task:
        await begun.wait()
        await task.stop()

        assert cancelled == [True]
        assert task.problem is None


async def test_who_stops_it_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own cancellation is not taken for that of the tick."""
    monkeypatch.setattr(tasks, "STOP_PATIENCE", 0.0)
    begun, cancelled, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run_once() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            await go.wait()
            raise
        return 0

    async with turning(run_once) as task:
        await begun.wait()
        stopping = asyncio.create_task(task.stop())
        await cancelled.wait()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        go.set()


async def test_a_tick_that_takes_too_long_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs as long as the clock says; once it is over all is well, however long it sleeps."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    begun, go, again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run_once() -> int:
        if begun.is_set():
            again.set()
            return 0
        begun.set()
        await go.wait()
        return 1

    task = BackgroundTask("sweeper", run_once, NEVER)
    await task.start()
    await begun.wait()
    now += tasks.OVERDUE_AFTER
    assert task.problem is None
    now += 1
    assert task.problem == "the sweeper hangs for 61 s"
    go.set()
    await again.wait()
    assert task.problem is None
    for _ in range(3):
        await asyncio.sleep(0)
    now += 2 * tasks.OVERDUE_AFTER
    assert task.problem is None
    await task.stop()


async def test_a_loop_that_has_died_is_a_problem() -> None:
    """Where something cancels it that is not its stop."""
    begun = asyncio.Event()

    async def run_once() -> int:
        begun.set()
        raise asyncio.CancelledError

    task = BackgroundTask("sweeper", run_once, NEVER)
    assert task.problem is None
    await task.start()
    await begun.wait()
    for _ in range(3):
        await asyncio.sleep(0)

    assert task.problem == "the sweeper died"
    await task.stop()
    assert task.problem is None
