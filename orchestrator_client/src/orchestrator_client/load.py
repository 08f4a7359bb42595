"""The CPU load of this machine over the last seconds."""

import time
from collections import deque
from typing import Final

import psutil

from orchestrator_shared.tasks import BackgroundTask

INTERVAL: Final = 1.0
#: Over how long the load is taken (seconds).
WINDOW: Final = 5.0


class Load:
    """Looks at the clock of the CPUs at its own pace, so that no caller disturbs another."""

    def __init__(self) -> None:
        self.task = BackgroundTask("load", self.run_once, INTERVAL)
        self._samples: deque[tuple[float, float, float]] = deque()
        self._sample()

    async def run_once(self) -> int:
        """Take a sample."""
        self._sample()
        return 0

    def percent(self) -> float:
        """The share of all CPUs that was busy over the last seconds, 0 to 100."""
        _, busy, total = _read()
        _, busy_before, total_before = self._samples[0]
        if total <= total_before:
            return 0.0
        share = 100.0 * (busy - busy_before) / (total - total_before)
        return round(min(max(share, 0.0), 100.0), 2)

    def _sample(self) -> None:
        self._samples.append(_read())
        while len(self._samples) > 1 and self._samples[0][0] < time.monotonic() - WINDOW:
            self._samples.popleft()


def _read() -> tuple[float, float, float]:
    times = psutil.cpu_times()
    # guest time is part of user time in Linux: proc_stat(5).
    idle = times.idle + getattr(times, "iowait", 0.0)
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return time.monotonic(), total - idle, total
