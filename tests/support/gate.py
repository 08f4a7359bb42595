"""A gate at which run.sh waits until the test lets it go on: no time passes for nothing."""

import asyncio
import os
from pathlib import Path


class Gate:
    """Two FIFOs: at one run.sh waits, over the other it says that it is there."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self._in = folder / f"{name}.in"
        self._out = folder / f"{name}.out"
        for path in (self._in, self._out):
            os.mkfifo(path)
        # Open for both: run.sh never waits for the other side, and nothing written is lost.
        self._let = os.open(self._in, os.O_RDWR)
        self._come = os.open(self._out, os.O_RDWR)

    @property
    def wait(self) -> str:
        """For a run.sh: say who is there, then wait."""
        return f"echo $ORCH_JOB_ID > {self._out}; read -r _ < {self._in}"

    async def reached(self) -> int:
        """Wait until a job comes to the gate; gives its id."""
        line = b""
        while not line.endswith(b"\n"):
            line += await asyncio.to_thread(os.read, self._come, 1)
        return int(line)

    def open(self, jobs: int = 1) -> None:
        """Let so many jobs go on, now or when they come."""
        os.write(self._let, b"\n" * jobs)

    def close(self) -> None:
        """Let go of the FIFOs."""
        os.close(self._let)
        os.close(self._come)
