"""The file `run` of a payload, as the supervisor writes it and the client reads it.

It is allocated beforehand, so that a full disk cannot lose an exit status, and has three records of
fixed length:

    started   {"boot", "pid", "ticks"}    before run.sh begins, then with its process
    killed    {"cause", "limit"}          before the first signal that is not run.sh's own wish
    ended     {"exit_code", "wall_s", "cpu_s", "max_rss", "error", …}

An exclusive lock on it is held as long as it runs. Nothing is imported here but the standard
library: the supervisor is to cost little.
"""

import contextlib
import fcntl
import json
import os
from typing import Any

RECORD_SIZE = 256
RECORDS = ("started", "killed", "ended")


def read_records(descriptor: int) -> dict[str, dict[str, Any]]:
    """The records of a file `run`. One that cannot be read was written all the same."""
    found: dict[str, dict[str, Any]] = {}
    content = os.pread(descriptor, RECORD_SIZE * len(RECORDS), 0)
    for number, name in enumerate(RECORDS):
        if text := content[number * RECORD_SIZE :][:RECORD_SIZE].strip(b"\0 \n"):
            found[name] = {}
            with contextlib.suppress(ValueError):
                found[name] = json.loads(text)
    return found


def read_run(path: str, *, wait: bool = False) -> dict[str, dict[str, Any]]:
    """The records of a file `run`; with `wait` once its lock is free: once it does not run."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return {}
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return read_records(descriptor)
    finally:
        os.close(descriptor)


def write_record(descriptor: int, name: str, content: dict[str, Any]) -> None:
    """Write a record in place: one write, which never needs more room on the disk."""
    text = json.dumps(content, separators=(",", ":")).encode()
    text = text[: RECORD_SIZE - 1].ljust(RECORD_SIZE - 1) + b"\n"
    os.pwrite(descriptor, text, RECORDS.index(name) * RECORD_SIZE)


def open_run(path: str) -> int:
    """Open a file `run`, with its lock and with room for what will be written to it.

    Raises:
        OSError: the disk is full, or somebody else has the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_size == 0:
            os.posix_fallocate(descriptor, 0, RECORD_SIZE * len(RECORDS))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
