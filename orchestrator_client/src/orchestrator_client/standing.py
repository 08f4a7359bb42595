"""Whether the client takes work, and why not."""

from collections.abc import Callable
from typing import Literal

from orchestrator_shared.errors import Unavailable

State = Literal["up", "leaving", "out"]


class Standing:
    """One of `up`, `out` (its CHECK fails) and `leaving` (it stops), as its servers are told."""

    def __init__(self) -> None:
        #: Called after each change.
        self.listener: Callable[[], None] = lambda: None
        self._out: str | None = None
        self._leaving = False

    @property
    def state(self) -> State:
        """What it is now."""
        if self._leaving:
            return "leaving"
        return "up" if self._out is None else "out"

    @property
    def why(self) -> str:
        """Why it takes no work; empty while it does."""
        return "this client stops" if self._leaving else self._out or ""

    def require_up(self) -> None:
        """Refuse to go on where no work is taken.

        Raises:
            Unavailable: that is so.
        """
        if self.state != "up":
            raise Unavailable(problem=self.why)

    def leave(self) -> None:
        """It stops: from now on it takes nothing, whatever else comes."""
        self._leaving = True
        self.listener()

    def set_out(self, why: str | None) -> None:
        """It is out for this reason; None: it is not out."""
        if why != self._out:
            self._out = why
            self.listener()
