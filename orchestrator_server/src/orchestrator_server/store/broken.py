"""The end of the process where a disk fails: what was answered is on it, and what was not can no
longer be promised. After a failed fsync nobody knows what a second one would mean, so
the restart begins with what is there."""

import logging
import os
import sys
from typing import NoReturn

from orchestrator_shared.errors import StartError


class DiskBroken(StartError):
    """The disk of {path} fails: {problem}. What was answered is kept. Look at the disk, then start
    the server again."""

    exit_code = 3


def give_up(error: StartError) -> NoReturn:
    """End the process at once, with a line that says why."""
    logging.shutdown()
    sys.stderr.write(f"orch-server: {error}\n")
    sys.stderr.flush()
    os._exit(error.exit_code)
