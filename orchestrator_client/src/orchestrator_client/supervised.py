"""One run.sh under the supervisor, and what is kept of it.

Nothing is imported here but the standard library and two neighbours that do likewise: the
supervisor is to cost little.
"""

import contextlib
import math
import os
import sys
import time
from typing import Any

from orchestrator_client.processes import group_runs, signal_group
from orchestrator_client.run_file import write_record

#: How soon it is looked what is left of a run that has ended (seconds); then each time twice as
#: late, up to the second.
LEAVE_LOOK = 0.01
STUCK_LOOK = 1.0


class Run:
    """One run.sh, until nothing of its process group is left. Moments are monotonic seconds."""

    def __init__(self, id: int, descriptor: int) -> None:
        self.id = id
        self.descriptor = descriptor
        self.pid = 0
        self.began = time.monotonic()
        self.cause: str | None = None
        #: Which limit it is that ends it at `limit_at`, in words.
        self.limit = ""
        #: How run.sh ended, once it has.
        self.end: dict[str, Any] | None = None
        #: When it has run for too long.
        self.limit_at = math.inf
        self.grace = 0.0
        #: When SIGKILL follows SIGTERM; after SIGKILL, when it is waited for no longer.
        self.due_at = math.inf
        #: Whether SIGKILL has been sent.
        self.dying = False
        #: When it is looked closer what is left of it, and how long after that again.
        self.look_at = math.inf
        self.look = LEAVE_LOOK
        #: What the kernel had killed before it began.
        self.oom_kills: int | None = None

    def is_left(self, now: float) -> bool:
        """Whether something of its process group is there, and, where it is time to look closer,
        runs."""
        if not signal_group(self.pid, 0):
            return False
        if now < self.look_at:
            return True
        self.look_at = now + self.look
        self.look = min(2 * self.look, STUCK_LOOK)
        return group_runs(self.pid)

    def killed(self) -> dict[str, Any]:
        """Whose wish its end is: nothing where it is its own."""
        if self.cause == "limit":
            return {"cause": self.cause, "limit": self.limit}
        return {"cause": self.cause} if self.cause else {}

    def keep(self, name: str, content: dict[str, Any], *, durable: bool = False) -> None:
        """Write a record. Where the disk fails all the same, what the client is told has to do:
        the other runs are not to end for it."""
        try:
            write_record(self.descriptor, name, content)
            if durable:
                os.fsync(self.descriptor)
        except OSError as error:
            complain(f"payload {self.id}: its {name} cannot be kept: {error.strerror}")


def complain(what: str) -> None:
    """Say in the supervisor's log what is wrong."""
    with contextlib.suppress(OSError):
        sys.stderr.write(what + "\n")
        sys.stderr.flush()
