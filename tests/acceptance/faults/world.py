"""A server, its clients with a proxy before each, a portal that does not give up, and a checker."""

import asyncio
import contextlib
import io
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from support.checker import Checker, Counters, Work, result_problem, work
from support.faults import Rule
from support.portal import Answer, Portal
from support.processes import Program
from support.proxy import Proxy

#: 1 is the short size of every scenario; 10 is a long one.
SCALE = int(os.environ.get("FAULTS_SCALE", "1"))
SEED = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(10**6))
#: How long a scenario may take until all its jobs have ended (seconds).
PATIENCE = 60.0 * SCALE
#: Between two looks at what tells nobody that it changes (seconds).
LOOK = 0.02
#: Bytes of a job whose files travel as a request of their own, in both directions.
LARGE = 100 * 1024


def chance(what: str) -> random.Random:
    """The random numbers of one scenario, the same whenever the seed is."""
    return random.Random(f"{SEED} {what}")


async def eventually(condition: Callable[[], object], within: float = 20.0) -> None:
    """Wait until that is so: for what lies on a disk or in /proc, which brings no event."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(LOOK)


class Steady(Portal):
    """A portal that asks again for as long as its server is away or has no room."""

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        """Any request that may be made more than once."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await super().request(method, path, **options)
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(LOOK)

    async def upload_work(self, own: Work, user_id: int = 1) -> int:
        """Upload until it is acknowledged: the key makes it one job however often it is tried."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    answer = await self.try_work(own, user_id)
                    if answer.status in (200, 201):
                        id: int = answer.json["id"]
                        return id
                    assert answer.status in (503, 507), (answer, answer.body)
                await asyncio.sleep(LOOK)

    async def try_work(self, own: Work, user_id: int = 1) -> Answer:
        """Upload once, whatever the answer."""
        form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        for name, content in own.files.items():
            form.add_field("file", io.BytesIO(content), filename=name)
        form.add_field("user_id", str(user_id))
        form.add_field("service", "example")
        headers = {"Idempotency-Key": own.token.decode()}
        return await super().request("POST", "/upload", data=form, headers=headers)


class Gate:
    """A FIFO before which run.sh waits, in every attempt, until the test opens it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    @property
    def script(self) -> str:
        """The line of run.sh that waits."""
        return f'read -r < "{self._path}"'

    def open(self) -> None:
        """Let pass whoever waits, and whoever comes later."""
        os.write(self._end, b"\n" * 500)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._end)


class World:
    """Everything that a scenario needs."""

    def __init__(self, root: Path, portal: Steady, server: Program, clients: list[Program]) -> None:
        self.root = root
        self.portal = portal
        self.server = server
        self.clients = clients
        self.proxies = [Proxy() for _ in clients]
        self.checker = Checker(
            server.folder, [client.folder for client in clients], root / "starts"
        )
        self.random = chance(root.name)
        self.server_killed = False
        self._gates: list[Gate] = []
        self._tokens = 0

    # --- jobs

    def gate(self) -> Gate:
        """A new one."""
        gate = Gate(self.root / f"gate{len(self._gates)}")
        self._gates.append(gate)
        return gate

    def open_gates(self) -> None:
        """Open all of them."""
        for gate in self._gates:
            gate.open()

    def work(self, *, large: bool = False, size: int = 0, **options: Any) -> Work:
        """A job with a token of its own, and with random content of this size, or large."""
        self._tokens += 1
        token = f"token {self._tokens} {self.random.randrange(2**64):016x}"
        content = self.random.randbytes(size or LARGE * large)
        return work(token, content=content, **options)

    async def upload(self, own: Work | None = None, user_id: int = 1, **options: Any) -> int:
        """Have a job acknowledged; from now on the checker knows of it."""
        own = own or self.work(**options)
        id = await self.portal.upload_work(own, user_id)
        self.checker.works[id] = own
        return id

    async def terminate(self, id: int) -> Answer:
        """Ask for the end of a job."""
        return await self.portal.post(f"/terminate/{id}")

    def harm(self, *rules: Rule) -> None:
        """These rules hold at every proxy; each counts for all of them together."""
        for proxy in self.proxies:
            proxy.add(*rules)

    async def begun(self, id: int, attempt: int = 1, within: float = PATIENCE) -> None:
        """Wait until run.sh of this attempt says that it has begun."""
        await eventually(lambda: attempt in self.checker.attempts(id), within)

    async def changes(self, count: int, uploading: "asyncio.Task[None]") -> None:
        """Wait for so many changes of jobs, as long as more are uploaded."""
        until = self.checker.changes() + count
        await eventually(
            lambda: uploading.done() or self.checker.changes() >= until, within=PATIENCE
        )

    # --- server and clients

    async def kill_server(self) -> None:
        """kill -9 of the server."""
        self.server_killed = True
        await self.server.stop(signal.SIGKILL)

    async def command(self, *words: str) -> None:
        """Run orch-server with these words where the server runs; fail unless it succeeds."""
        program = Program("orch-server", self.server.folder, self.server.environment)
        await program.spawn(*words)
        assert await program.exited() == 0, program.log

    async def clients_are_there(self, count: int | None = None) -> None:
        """Wait until so many clients are up; all, if no number is given."""
        wanted = len(self.clients) if count is None else count
        async with asyncio.timeout(PATIENCE):
            while (await self.portal.get("/health")).json["clients_up"] != wanted:
                await asyncio.sleep(LOOK)

    def client_of(self, record: Mapping[str, Any]) -> int:
        """Which client has a job: its number."""
        return [proxy.url for proxy in self.proxies].index(record["client"])

    # --- the end

    async def ended(self, within: float = PATIENCE) -> None:
        """Wait until every job has ended, those that were never acknowledged too."""
        try:
            async with asyncio.timeout(within):
                for id in self.checker.works:
                    await self.portal.ended(id)
                while self.checker.unended():
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            unended = "\n".join(self.checker.unended())
            raise AssertionError(f"not ended within {within} s:\n{unended}") from None

    async def settled(self, within: float = PATIENCE) -> Counters:
        """Wait until every job has ended; fail with what is wrong, on the disks too."""
        await self.ended(within)
        counters = self.checker.check()
        for id, own in self.checker.works.items():
            answer = await self.portal.get(f"/download/{id}")
            if answer.status == 200:
                problem = result_problem(own, answer.body)
                assert problem is None, f"job {id} as it is downloaded: {problem}"
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not self._rubbish())
        assert not (rubbish := self._rubbish()), rubbish
        return counters

    def _rubbish(self) -> list[str]:
        # Folders of uploads that a kill of the server cut off wait for its Cleaner.
        left = [] if self.server_killed else self.checker.unowned()
        return [*left, *self.checker.left_over(), *(f"process {pid}" for pid in self.strays())]

    def strays(self) -> list[int]:
        """What runs in a working directory, though no job is there."""
        places = [client.folder / "client-data" / "work" for client in self.clients]
        return [pid for place in places for pid in processes_in(place)]

    async def close(self) -> None:
        """End everything."""
        await self.server.close()
        for client in self.clients:
            await kill_container(client)
        for proxy in self.proxies:
            await proxy.down()
        for gate in self._gates:
            gate.close()


@contextlib.asynccontextmanager
async def world(
    root: Path,
    *,
    clients: int = 2,
    server: Mapping[str, str] | None = None,
    client: Mapping[str, str] | None = None,
) -> AsyncIterator[World]:
    """All of it, started: the server calls its clients by way of the proxies."""
    async with aiohttp.ClientSession() as session:
        agents = [
            Program(
                "orch-client",
                root / f"client{number}",
                {
                    "SLOTS": "2",
                    "KILL_GRACE": "1",
                    "STARTS": str(root / "starts"),
                    "WHERE": f"client{number}",
                    "JOB_ENV": "STARTS,WHERE",
                    **(client or {}),
                },
            )
            for number in range(clients)
        ]
        main = Program("orch-server", root / "server", {})
        there = World(root, Steady("", session), main, agents)
        try:
            for proxy in there.proxies:
                await proxy.up()
            main.environment.update(
                {
                    "SERVICE_EXAMPLE_URL": ",".join(proxy.url for proxy in there.proxies),
                    "SERVICE_EXAMPLE_RUNS_PER_USER": "100",
                    "SERVICE_EXAMPLE_MAX_ATTEMPTS": "100",
                    # More than the 5 s between two heartbeats.
                    "CLIENT_LOST_AFTER": "6",
                    **(server or {}),
                }
            )
            await asyncio.gather(*(program.start() for program in (main, *agents)))
            there.portal.base = main.url
            for proxy, agent in zip(there.proxies, agents, strict=True):
                proxy.target = agent.port
            await there.clients_are_there()
            yield there
        except BaseException as error:
            error.add_note(f"again with FAULTS_SEED={SEED}")
            for program in (main, *agents):
                error.add_note(f"--- {program.folder.name}\n" + "\n".join(program.log[-400:]))
            raise
        finally:
            await there.close()


async def side_by_side(root: Path, *scenarios: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    """All at once, each in a folder of its own: for those that spend their time waiting until
    somebody has been silent for long enough."""
    async with asyncio.TaskGroup() as group:
        for scenario in scenarios:
            own = root / scenario.__name__
            own.mkdir()
            group.create_task(scenario(own))


# --- processes


def processes_in(folder: Path) -> list[int]:
    """The processes whose working directory lies there, removed or not."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{entry.joinpath('cwd').readlink()}/".startswith(f"{folder}/"):
                    found.append(int(entry.name))
    return found


def supervisor_of(client: Program) -> int | None:
    """The process that holds supervisor.lock (proc_locks(5)); None if none does."""
    try:
        inode = (client.folder / "client-data" / "supervisor.lock").stat().st_ino
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send it to those of them that are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def kill_supervisor(client: Program) -> bool:
    """kill -9 of the supervisor of a client; False if it has none just now."""
    pid = supervisor_of(client)
    if pid is None:
        return False
    send_signal([pid], signal.SIGKILL)
    return True


async def kill_container(client: Program) -> None:
    """The client, its supervisor and every run.sh die at once, as when their container ends."""
    supervisor = supervisor_of(client)
    await client.close()
    send_signal([supervisor] if supervisor else [], signal.SIGKILL)
    while left := processes_in(client.folder):
        send_signal(left, signal.SIGKILL)
        await asyncio.sleep(LOOK)
