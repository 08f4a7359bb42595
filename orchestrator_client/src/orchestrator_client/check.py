"""CHECK: a script of the operator's that says whether this machine is fit for work."""

import asyncio
import contextlib
import io
import logging
import os
import signal
import time
from typing import Final

from orchestrator_client.standing import Standing
from orchestrator_client.stopping import Stopping
from orchestrator_shared.tasks import BackgroundTask

log = logging.getLogger(__name__)

#: How often it runs while it passes (seconds).
INTERVAL: Final = 600.0
#: How often it runs while it fails (seconds), so that a machine that was repaired is soon back.
AGAIN: Final = 30.0
#: How long it may take (seconds).
TIME_LIMIT: Final = 60.0
#: How much of its output is kept (bytes): the last.
OUTPUT_LIMIT: Final = 4096
#: What a pipe holds at most (bytes): pipe(7).
PIPE_SIZE: Final = 65536
#: How much of its last line is shown (characters).
LINE_LIMIT: Final = 200


class Check:
    """Runs the script at start and from then on; while it fails the client is out."""

    def __init__(self, script: str, standing: Standing, stopping: Stopping) -> None:
        self.task = BackgroundTask("check", self.run_once, AGAIN)
        self._script = script
        self._standing = standing
        self._stopping = stopping
        self._due = time.monotonic()
        # Until it has passed once nobody knows whether this machine is fit.
        standing.set_out("CHECK has not ended yet")

    async def run_once(self) -> int:
        """Run it, if it is time for it."""
        if time.monotonic() < self._due:
            return 0
        problem = await self._problem()
        if problem is None:
            self._due = time.monotonic() + INTERVAL
            log.info("CHECK passes")
        else:
            log.warning("%s: no work is taken", problem)
        self._standing.set_out(problem)
        if problem is not None:
            await self._stopping.clear()
        return 0

    async def _problem(self) -> str | None:
        """Why it fails; None if it passes."""
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        with io.FileIO(readable) as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *("/bin/bash", "-c", self._script),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writable,
                    stderr=writable,
                    process_group=0,
                )
            except OSError as error:
                return f"CHECK cannot be run: {error.strerror}"
            finally:
                os.close(writable)
            return await _judge(process, output)


async def _judge(process: asyncio.subprocess.Process, output: io.RawIOBase) -> str | None:
    """Wait for its end, and no longer: what it leaves in the background may hold its output."""
    kept = bytearray()

    def keep() -> None:
        chunk = output.read(PIPE_SIZE)
        if chunk == b"":
            loop.remove_reader(output)
        kept.extend(chunk or b"")
        del kept[:-OUTPUT_LIMIT]

    loop = asyncio.get_running_loop()
    loop.add_reader(output, keep)
    try:
        async with asyncio.timeout(TIME_LIMIT):
            code = await process.wait()
        keep()
    except TimeoutError:
        return f"CHECK took more than {TIME_LIMIT:g} s{_last_line(kept)}"
    finally:
        loop.remove_reader(output)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return f"CHECK fails ({code}){_last_line(kept)}" if code else None


def _last_line(output: bytearray) -> str:
    lines = output.decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    shown = "".join(letter for letter in said[-1] if letter.isprintable()) if said else ""
    return f": {shown[:LINE_LIMIT]}" if shown else ""
