"""The time by which ages count: no step of the wall clock makes anything old."""

import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

#: A wall clock that jumps ahead by more than this (seconds) is not believed for as long.
JUMP: Final = 3600.0


class Clock:
    """The wall clock, as far as it can be believed.

    It goes on with the monotonic clock, and follows the wall clock ahead: at once by small steps,
    by a jump only once that has stood for an hour. It does not follow it back: what was stamped by
    this clock is as old by it as time has passed.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._stopwatch = stopwatch
        self._ahead = wall() - stopwatch()
        self._jumped_at: float | None = None

    def now(self) -> float:
        """Unix time (seconds)."""
        self._look()
        return self._stopwatch() + self._ahead

    @property
    def trusted(self) -> bool:
        """Whether something may be removed for its age."""
        self._look()
        return self._jumped_at is None

    @property
    def problem(self) -> str | None:
        """Why nothing may be removed for its age; None while it may."""
        if self.trusted:
            return None
        return "the clock jumped ahead by more than an hour: no files are removed for an hour"

    def _look(self) -> None:
        passed = self._stopwatch()
        ahead = self._wall() - passed
        if ahead - self._ahead <= JUMP:
            self._jumped_at = None
            self._ahead = max(self._ahead, ahead)
        elif self._jumped_at is None:
            self._jumped_at = passed
            log.warning("the clock jumped ahead by %.0f s", ahead - self._ahead)
        elif passed - self._jumped_at >= JUMP:
            self._jumped_at = None
            self._ahead = ahead
