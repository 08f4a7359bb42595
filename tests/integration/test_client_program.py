"""orch-client as a process of its own: how it starts, and how it stops."""

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_shared import __version__
from support.agent import claim, form, kill_what_runs, supervisor_ended
from support.follower import following
from support.gate import Gate
from support.portal import Portal
from support.processes import Program


@contextlib.asynccontextmanager
async def program(folder: Path, **environment: str) -> AsyncIterator[Program]:
    """The command, not yet started; what it leaves running is ended."""
    own = Program("orch-client", folder, environment)
    folder.mkdir(exist_ok=True)
    try:
        yield own
    finally:
        await own.close()
        data_path = folder / "client-data"
        while not supervisor_ended(data_path):
            for run in data_path.glob("payloads/*/run"):
                kill_what_runs(run)
            await asyncio.sleep(0.005)


async def submit(session: aiohttp.ClientSession, url: str, script: str, job: int = 1) -> int:
    """Hand over a job that is taken; gives the id of its payload."""
    answer = await Portal(url, session).post("/submit", data=form(script), headers=claim(job))
    assert answer.status == 200, answer
    id: int = answer.json["id"]
    return id


@pytest.mark.parametrize(
    ("setting", "value", "flags"),
    [
        ("SLOTS", "many", ()),
        ("DATA_PATH", "/dev/null/below", ()),
        ("DB_PATH", "/dev/null/below", ()),
        ("PORT", "http", ("--port", "http")),
        ("HOST", "192.0.2.1", ("--host", "192.0.2.1")),
    ],
)
async def test_a_setting_that_cannot_be_used_stops_the_start(
    tmp_path: Path, setting: str, value: str, flags: tuple[str, ...]
) -> None:
    """One line that names it, and exit code 2."""
    async with program(tmp_path, **({} if flags else {setting: value})) as client:
        await client.spawn(*flags)

        assert await client.exited() == 2

    lines = [line for line in client.log if "INFO" not in line]
    assert len(lines) == 1, client.log
    assert lines[0].startswith("orch-client: ")
    assert setting in lines[0]
    assert value.removesuffix("/below") in lines[0]


@pytest.mark.parametrize(
    ("flag", "says"), [("--version", f"orch-client {__version__}"), ("--help", "--port")]
)
async def test_it_says_what_it_is(tmp_path: Path, flag: str, says: str) -> None:
    """On stdout, with exit code 0 and without starting."""
    command = Path(sys.executable).with_name("orch-client")
    process = await asyncio.create_subprocess_exec(
        command, flag, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()

    assert process.returncode == 0
    assert says in printed.decode()
    assert list(tmp_path.iterdir()) == []


async def test_a_second_client_on_the_same_data_is_refused(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Exit code 2, and one line that says which kind has it; the first is not disturbed."""
    async with program(tmp_path) as first, program(tmp_path) as second:
        await first.start()
        await second.spawn("--port", "0")

        assert await second.exited() == 2

        assert len(second.log) == 1, second.log
        assert "DATA_PATH" in second.log[0]
        assert str(tmp_path / "client-data") in second.log[0]
        assert "in use by an orch-client" in second.log[0]
        assert (await Portal(first.url, session).get("/health")).status == 200


async def test_a_client_on_the_data_of_a_server_is_refused(tmp_path: Path) -> None:
    """Likewise, and it says that it is a server's."""
    server = Program("orch-server", tmp_path / "server", {})
    try:
        await server.start()
        data_path = str(tmp_path / "server" / "server-data")
        async with program(tmp_path / "client", DATA_PATH=data_path) as client:
            await client.spawn("--port", "0")
            assert await client.exited() == 2
            assert "in use by an orch-server" in client.log[0]
    finally:
        await server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_cleanly(
    tmp_path: Path, session: aiohttp.ClientSession, number: signal.Signals
) -> None:
    """With exit code 0 and no complaint, while streams are open and a payload runs; that runs
    on, and is taken up at the next start."""
    gate = Gate(tmp_path)
    async with program(tmp_path / "c") as client:
        await client.start()
        id = await submit(session, client.url, f"{gate.wait}; exit 3")
        await gate.reached()
        async with following(session, client.url) as stream:
            await stream.kind("listed")
            code = await client.stop(number)
            await stream.end()

        assert code == 0
        assert not [line for line in client.log if re.search("ERROR|WARNING|Traceback", line)]
        await client.start()
        async with following(session, client.url) as stream:
            await stream.state(id, "Running")
            gate.open()
            assert (await stream.ended(id))["exit_code"] == 3
    gate.close()


async def test_it_stops_while_it_packs(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """What would take minutes is left, and begun again at the next start."""
    async with program(tmp_path) as client:
        await client.start()
        id = await submit(session, client.url, "truncate -s 1T huge")
        packing = tmp_path / "client-data" / "payloads" / str(id) / "result.zip.new"
        while not packing.exists():
            await Portal(client.url, session).get("/live")

        assert await client.stop() == 0

        work = tmp_path / "client-data" / "work" / str(id) / "job"
        (work / "huge").unlink()
        await client.start()
        async with following(session, client.url) as stream:
            assert (await stream.ended(id))["status"] == "Completed"


async def test_a_killed_client_takes_everything_up(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """`kill -9`: what ran has its own end, what had ended its result, what waited its turn."""
    gate = Gate(tmp_path)
    async with program(tmp_path / "c", SLOTS="1") as client:
        await client.start()
        ended = await submit(session, client.url, "echo x > out.txt", 1)
        async with following(session, client.url) as stream:
            before = await stream.ended(ended)
        runs = await submit(session, client.url, f"{gate.wait}; exit 4", 2)
        await gate.reached()
        waits = await submit(session, client.url, "exit 5", 3)

        await client.stop(signal.SIGKILL)
        gate.open()
        await client.start()

        async with following(session, client.url) as stream:
            assert await stream.ended(ended) == before
            assert (await stream.ended(runs))["exit_code"] == 4
            assert (await stream.ended(waits))["exit_code"] == 5
    gate.close()


async def test_a_killed_client_with_its_index_in_a_file_starts_again(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Whatever state that file was left in."""
    async with program(tmp_path, DB_PATH="index.sqlite") as client:
        await client.start()
        id = await submit(session, client.url, "exit 6")
        async with following(session, client.url) as stream:
            await stream.ended(id)
        await client.stop(signal.SIGKILL)
        (tmp_path / "index.sqlite-journal").write_bytes(b"torn" * 1000)
        await client.start()

        async with following(session, client.url) as stream:
            assert (await stream.ended(id))["exit_code"] == 6


async def test_it_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one."""
    async with program(tmp_path) as client:
        await client.start()
        limits = Path(f"/proc/{client.pid}/limits").read_text()

    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard


async def test_each_change_of_state_is_one_line(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """With the job and the attempt; no request is logged, and nothing that a user caused has a
    traceback."""
    async with program(tmp_path) as client:
        await client.start()
        async with following(session, client.url) as stream:
            id = await submit(session, client.url, "exit 9", 77)
            await stream.ended(id)
            await stream.acknowledge(77)
            await stream.state(id, "Cleaned")
            await Portal(client.url, session).get("/nothing")
            await Portal(client.url, session).post("/submit", data=b"nonsense")
        await client.stop()

    lines = [line for line in client.log if f"payload {id} " in line]
    states = [re.search(r"is (\w+)", line) for line in lines]
    assert [match and match[1] for match in states] == ["Prepared", "Running", "Failed", "Cleaned"]
    assert all("job 77 attempt 1 service example" in line for line in lines)
    assert "exit status 9" in lines[2]
    assert not [line for line in client.log if re.search("GET|POST|Traceback|ERROR", line)]
