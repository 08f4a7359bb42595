"""A client alone, with the test in the place of its server."""

import asyncio
import contextlib
import fcntl
import io
import itertools
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from orchestrator_client import processes, run_file, supervisor
from orchestrator_client.app import create_app
from orchestrator_shared.clocks import Clock
from orchestrator_shared.protocol import (
    H_ATTEMPT,
    H_JOB,
    H_PROTOCOL,
    H_SERVER,
    H_SERVICE,
    PROTOCOL,
)
from support.follower import Follower, contents, following
from support.portal import Answer, Files, Portal
from support.system import client_config

#: How long what is left may take to end (seconds) before the test gives up.
PATIENCE = 30.0


def claim(
    job: int, attempt: int = 1, *, server: str = "a-server", service: str = "example"
) -> dict[str, str]:
    """The headers with which a server names an attempt."""
    return {
        H_PROTOCOL: str(PROTOCOL),
        H_SERVER: server,
        H_JOB: str(job),
        H_ATTEMPT: str(attempt),
        H_SERVICE: service,
    }


def form(files: Files | str) -> aiohttp.FormData:
    """Files as multipart, as a server or curl sends them; a text is a run.sh."""
    data = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for name, body in contents(files).items():
        data.add_field("file", io.BytesIO(body), filename=name)
    return data


class Clocks:
    """The clock on the wall, which somebody sets, and the one that measures durations."""

    def __init__(self) -> None:
        self.wall = time.time()
        self.passed = 0.0

    def go_on(self, seconds: float) -> None:
        """Time passes, for both."""
        self.wall += seconds
        self.passed += seconds

    def go_to(self, seconds: float) -> None:
        """Time passes until so much has passed since the beginning."""
        self.go_on(seconds - self.passed)

    def make(self) -> Clock:
        """A client's clock that goes by them."""
        return Clock(lambda: self.wall, lambda: self.passed)


class Agent:
    """One client on one DATA_PATH, in this process. It can be stopped and started again."""

    def __init__(self, data_path: Path, session: aiohttp.ClientSession, **changes: Any) -> None:
        self.data_path = data_path
        self.session = session
        #: By which it tells ages from its next start on, if it is not that of the system.
        self.clock: Clock | None = None
        self._changes = changes
        self._server: TestServer | None = None
        self._stack = contextlib.AsyncExitStack()
        self._jobs = itertools.count(1)

    # --- its life

    async def start(self, **changes: Any) -> None:
        """Start it; `changes` of its settings stay for the next start."""
        self._changes.update(changes)
        app = create_app(client_config(self.data_path, **self._changes), self.clock)
        self._server = TestServer(app, port=unused_port())
        await self._server.start_server(shutdown_timeout=1)
        self.base = str(self._server.make_url("")).rstrip("/")
        self.portal = Portal(self.base, self.session)
        #: The stream of the server that the test plays.
        self.stream: Follower = await self._stack.enter_async_context(self.follow())

    async def stop(self) -> None:
        """Stop it as SIGTERM does; what runs, runs on."""
        if self._server is not None:
            server, self._server = self._server, None
            # It closes the streams, whose other ends are here.
            await server.close()
            await self._stack.aclose()

    async def restart(self, **changes: Any) -> None:
        """Stop it, and start it again."""
        await self.stop()
        await self.start(**changes)

    async def close(self) -> None:
        """Stop it, end what it has left running, and wait for the end of its supervisor."""
        await self.stop()
        async with asyncio.timeout(PATIENCE):
            while not supervisor_ended(self.data_path):
                for run in self.data_path.glob("payloads/*/run"):
                    kill_what_runs(run)
                await asyncio.sleep(0.005)

    @property
    def app(self) -> web.Application:
        """Its parts."""
        assert self._server is not None
        return self._server.app

    # --- what a server does with it

    def follow(self, server: str = "a-server") -> contextlib.AbstractAsyncContextManager[Follower]:
        """Another stream."""
        return following(self.session, self.base, server)

    async def try_submit(self, files: Files | str, headers: dict[str, str]) -> Answer:
        """POST /submit, whatever the answer."""
        return await self.portal.post("/submit", data=form(files), headers=headers)

    async def submit(
        self, files: Files | str, *, job: int | None = None, **named: Any
    ) -> dict[str, Any]:
        """Hand over a job that is taken; gives its payload back."""
        number = next(self._jobs) if job is None else job
        answer = await self.try_submit(files, claim(number, **named))
        assert answer.status == 200, answer
        payload: dict[str, Any] = answer.json
        return payload

    async def run(self, files: Files | str, **named: Any) -> dict[str, Any]:
        """Hand over a job, and wait for its end; gives its payload back."""
        payload = await self.submit(files, **named)
        return await self.stream.ended(payload["id"])

    async def retrieve(self, id: int) -> Answer:
        """GET /retrieve/<id>."""
        return await self.portal.get(f"/retrieve/{id}")

    async def kill(self, id: int) -> Answer:
        """POST /kill/<id>."""
        return await self.portal.post(f"/kill/{id}")

    async def result(self, id: int) -> zipfile.ZipFile:
        """What was packed of a payload, whatever its end."""
        answer = await self.portal.get(f"/result/{id}")
        assert answer.status == 200, answer
        return answer.zip

    async def printed(self, script: str) -> str:
        """What a run.sh prints."""
        payload = await self.run(script)
        assert payload["status"] == "Completed", payload
        return (await self.result(payload["id"])).read(".orchestrator/stdout.log").decode()

    # --- its disk

    def work(self, id: int) -> Path:
        """The folder that holds the working directory of a payload."""
        return self.data_path / "work" / str(id)

    def control(self, id: int) -> Path:
        """What the client keeps of a payload."""
        return self.data_path / "payloads" / str(id)

    def left(self) -> list[str]:
        """The folders of payloads, and of uploads under way."""
        return sorted(
            str(entry.relative_to(self.data_path))
            for name in ("payloads", "work", "tmp")
            for entry in (self.data_path / name).iterdir()
        )

    async def supervisor_gone(self) -> None:
        """Wait until no supervisor is left."""
        lock = str(self.data_path / supervisor.LOCK_NAME)
        # Each holds it as long as it lives.
        async with asyncio.timeout(PATIENCE):
            process = await asyncio.create_subprocess_exec("flock", lock, "true")
            assert await process.wait() == 0

    def supervisor_pid(self) -> int:
        """The process that holds what runs."""
        descriptor = os.open(self.data_path / supervisor.LOCK_NAME, os.O_RDONLY)
        try:
            pid: int = run_file.read_records(descriptor)["started"]["pid"]
            return pid
        finally:
            os.close(descriptor)


#: Runs a supervisor with some of its constants changed: DATA_PATH, ready, then name=value.
_SUPERVISE = """
import sys
from orchestrator_client import supervisor
for change in sys.argv[3:]:
    name, value = change.split("=")
    setattr(supervisor, name, float(value))
supervisor.main(sys.argv[1], 1024, int(sys.argv[2]))
"""


async def start_supervisor(
    data_path: Path, *under: str, environment: Mapping[str, str] | None = None, **changes: float
) -> None:
    """Start a supervisor that the client finds there as it starts its first payload.

    `under` is the command under which it runs; `changes` are constants of supervisor.py.
    """
    readable, writable = os.pipe()
    with open(readable, "rb") as ready:
        os.set_inheritable(writable, True)
        command = [*under, sys.executable, "-c", _SUPERVISE, str(data_path), str(writable)]
        pid = os.posix_spawnp(
            command[0],
            [*command, *(f"{name}={value}" for name, value in changes.items())],
            {**os.environ, **(environment or {})},
            setsid=True,
        )
        # It outlives the test's loop, which therefore must not be the one that collects it.
        threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
        os.close(writable)
        assert await asyncio.to_thread(ready.read) == b""


def kill_what_runs(run: Path) -> None:
    """End a run.sh of which the supervisor's file says that it has not ended."""
    records = run_file.read_run(str(run))
    started = records.get("started", {})
    same = started.get("pid") and processes.identify(started["pid"]) == started
    if same and "ended" not in records:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started["pid"], signal.SIGKILL)


def supervisor_ended(data_path: Path) -> bool:
    """Whether no supervisor serves this DATA_PATH."""
    lock = data_path / supervisor.LOCK_NAME
    if not lock.exists():
        return True
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.asynccontextmanager
async def agent(
    data_path: Path, session: aiohttp.ClientSession, **changes: Any
) -> AsyncIterator[Agent]:
    """A client that runs, with these settings changed."""
    own = Agent(data_path, session, **changes)
    try:
        await own.start()
        yield own
    finally:
        await own.close()
