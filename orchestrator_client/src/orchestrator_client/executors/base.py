"""What the Runner needs of a way to run payloads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator_client.workdir import Workdir


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How run.sh ended. Times are seconds, max_rss bytes."""

    exit_code: int | None = None
    signal: int | None = None
    #: Who wanted the end: `operator`, `limit`, `hand_back`, or nobody.
    cause: str | None = None
    #: Which limit that was.
    limit: str | None = None
    #: Why it never began.
    error: str | None = None
    #: Whether that was for want of room on the disk.
    no_room: bool = False
    #: Whether nobody knows how it ended.
    lost: bool = False
    #: Whether processes of it are still there, which SIGKILL does not end.
    stuck: bool = False
    #: Whether the kernel killed for want of memory while it ran, and SIGKILL ended it.
    oom: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a run may take (seconds), and whose limit that is."""

    seconds: float
    whose: str

    def __str__(self) -> str:
        return f"{self.seconds:g} s ({self.whose})"


class Listener(Protocol):
    """Who wants to know how payloads fare."""

    def on_started(self, id: int, pid: int) -> None:
        """run.sh runs."""

    def on_ended(self, id: int, end: RunEnd) -> None:
        """run.sh has ended, and nothing of its process group is left but what is stuck."""

    def on_stuck(self, ids: frozenset[int]) -> None:
        """Of these payloads, which have ended, processes are still there after SIGKILL."""


class Executor(Protocol):
    """A way to run payloads. What it runs outlives the client."""

    async def open(self, listener: Listener, running: Mapping[int, Workdir]) -> None:
        """Begin; `running` are the payloads that an earlier start has begun. The end of each of
        them is told in time, or at once where it has ended meanwhile."""

    async def start(
        self, workdir: Workdir, environment: Mapping[str, str], limit: Limit | None
    ) -> None:
        """Run run.sh in its working directory, for as long as `limit` allows."""

    async def kill(self, id: int, cause: str, grace: float) -> bool:
        """End a payload, with so many seconds between SIGTERM and SIGKILL; the cause is durable
        before the first signal. False: how it ends is decided already.

        Raises:
            Unavailable: nobody knows; it can be asked again.
        """

    async def close(self) -> None:
        """Let go: what runs, runs on."""
