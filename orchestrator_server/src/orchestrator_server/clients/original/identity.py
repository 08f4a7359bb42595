"""By what a client of the original is known, as it has no id of its own, and with what of this
server it is followed."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator_server.clients.directory import Directory


def instance_of(base: str) -> str:
    """Its instance: where it answers."""
    return uuid.uuid5(uuid.NAMESPACE_URL, base).hex


def start_of(resets: int) -> str:
    """Its start: one for each time that its ids began again."""
    return f"ids {resets}"


@dataclass(frozen=True)
class Here:
    """What of this server a client of the original is followed with."""

    directory: Directory
    #: The id of this server.
    server: str
    #: Where files are put that are under way, and what refuses to where there is no room.
    tmp: Path
    check_room: Callable[[int], None]
    #: How often each payload is asked for, and how long a client may be silent (seconds).
    interval: float
    lost_after: float
