"""The real programs as processes of their own, on ports of their own."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

#: How long a program may take to begin or to stop (seconds) before the test gives up.
PATIENCE = 30.0


class Program:
    """`orch-server` or `orch-client`, started as a user starts it."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.environment = dict(environment)
        self.port = 0
        self.log: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has been started, and ended since."""
        return self._process is not None and self._process.returncode is not None

    async def start(self, *flags: str) -> None:
        """Start it, and wait until it listens; after a stop it takes the same port again."""
        self.folder.mkdir(exist_ok=True)
        await self.spawn("--port", str(self.port), *flags)
        line = await self.logged(r"listening on http://127\.0\.0\.1:(\d+)")
        self.port = int(line[1])

    async def spawn(self, *flags: str) -> None:
        """Start it, and wait for nothing."""
        self.log.clear()
        self._process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(self.name)),
            *flags,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "MIN_FREE_DISK": "0", **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def logged(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its log that has this pattern."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [m for line in self.log if (m := re.search(pattern, line))]
            assert found or self._reading is None or not self._reading.done(), self.log
            return bool(found)

        async with asyncio.timeout(PATIENCE):
            while not look():
                self._news.clear()
                await self._news.wait()
        return found[0]

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, and wait for its end; gives back its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self.exited()

    async def exited(self) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        assert self._reading is not None
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            await self._reading
        return code

    async def close(self) -> None:
        """Make sure that it has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                await self.stop(signal.SIGKILL)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self.log.append(line.decode().rstrip())
            self._news.set()
        # Its log ends: whoever waits for a line of it is told.
        asyncio.get_running_loop().call_soon(self._news.set)


@contextlib.asynccontextmanager
async def programs(
    tmp_path: Path,
    *,
    server: Mapping[str, str] | None = None,
    client: Mapping[str, str] | None = None,
    clients: int = 1,
) -> AsyncIterator[tuple[Program, list[Program]]]:
    """A server with the service `example` at some clients; all of them have been started."""
    own = {"SLOTS": "2", "KILL_GRACE": "1", **(client or {})}
    others = [Program("orch-client", tmp_path / f"client{n}", own) for n in range(clients)]
    main = Program("orch-server", tmp_path / "server", server or {})
    try:
        for other in others:
            await other.start()
        main.environment["SERVICE_EXAMPLE_URL"] = ",".join(other.url for other in others)
        await main.start()
        yield main, others
    finally:
        await main.close()
        for other in others:
            await other.close()
            await end_supervisor(other.folder / "client-data")


async def end_supervisor(data_path: Path) -> None:
    """End what a killed client has left running, and wait for the end of its supervisor."""
    for run in data_path.glob("payloads/*/run"):
        match = re.search(rb'"pid":(\d+)', run.read_bytes())
        if match and int(match[1]):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(match[1]), signal.SIGKILL)
    lock = data_path / "supervisor.lock"
    if lock.exists():
        # Held for the life of the supervisor.
        process = await asyncio.create_subprocess_exec("flock", str(lock), "true")
        await process.wait()
