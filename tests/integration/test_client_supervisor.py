"""The supervisor: when it ends, and what becomes of payloads when it dies."""

import asyncio
import json
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client import processes, run_file, supervisor
from support.agent import Agent, agent
from support.gate import Gate
from support.limits import open_descriptors


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with two slots."""
    async with agent(tmp_path / "client", session) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return processes.read_stat(pid)[0] not in ("", "Z", "X")


async def test_it_ends_by_itself(client: Agent, gate: Gate) -> None:
    """Once neither a client is connected nor anything runs; its socket is gone then."""
    await client.submit(gate.wait)
    await gate.reached()
    pid = client.supervisor_pid()

    await client.stop()
    assert alive(pid)
    gate.open()
    await client.supervisor_gone()

    # It lets go of its lock as it goes.
    while alive(pid):
        await asyncio.sleep(0)
    assert not (client.data_path / supervisor.SOCKET_NAME).exists()
    gate.close()


async def test_none_is_there_before_it_is_needed(client: Agent) -> None:
    """An idle client is one process."""
    await client.run({"in.txt": "no run.sh"})

    assert not (client.data_path / supervisor.LOCK_NAME).exists()


async def test_a_client_that_comes_while_it_ends_starts_another(client: Agent) -> None:
    """However often that happens, and whichever of the two is faster."""
    for _ in range(10):
        assert (await client.run("true"))["status"] == "Completed"
        await client.restart()


async def test_one_that_is_killed_loses_what_ran(client: Agent, gate: Gate) -> None:
    """Lost, and said so; its process group is dead; what waited goes on under another."""
    script = f"(trap '' TERM; echo $BASHPID >> pids; sleep 1000) & echo $$ >> pids; {gate.wait}"
    running = [await client.submit(script) for _ in range(2)]
    for _ in running:
        await gate.reached()
    waiting = await client.submit("echo fine > out.txt")
    first = client.supervisor_pid()

    os.kill(first, signal.SIGKILL)
    ends = [await client.stream.ended(payload["id"]) for payload in running]

    for end in ends:
        assert (end["status"], end["fault"], end["lost"]) == ("Failed", "infrastructure", True)
        assert end["exit_code"] is None
        pids = (await client.result(end["id"])).read("pids").split()
        assert [pid for pid in pids if alive(int(pid))] == []
    assert (await client.stream.ended(waiting["id"]))["status"] == "Completed"
    assert client.supervisor_pid() != first
    gate.close()


async def test_what_had_left_its_group_ends_with_it(client: Agent, gate: Gate) -> None:
    """run.sh is gone already, a child of it is not: nothing of a lost attempt goes on."""
    script = f"(trap '' TERM; echo $BASHPID > pid; sleep 1000) & {gate.wait}; exec bash -c :"
    payload = await client.submit(script)
    await gate.reached()
    pid = client.supervisor_pid()
    os.kill(pid, signal.SIGSTOP)
    gate.open()
    run_sh = (await client.stream.state(payload["id"], "Running")).payload["pid"]
    run_sh = run_sh or (await client.retrieve(payload["id"])).json["pid"]
    while alive(run_sh):
        await client.portal.get("/live")

    os.kill(pid, signal.SIGKILL)
    end = await client.stream.ended(payload["id"])

    assert end["lost"] is True
    assert not alive(int((await client.result(payload["id"])).read("pid")))
    gate.close()


@pytest.mark.parametrize("restart", [False, True])
async def test_one_that_is_killed_between_kill_and_end(
    client: Agent, gate: Gate, restart: bool
) -> None:
    """The wish had been kept: the payload is Killed, not lost."""
    await client.restart(kill_grace=3600.0)
    payload = await client.submit(f"trap '{gate.wait}' TERM; {gate.wait}")
    await gate.reached()
    await client.kill(payload["id"])
    await gate.reached()
    pid = client.supervisor_pid()
    if restart:
        await client.stop()
    os.kill(pid, signal.SIGKILL)
    if restart:
        await client.start()

    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["fault"], end["lost"]) == ("Killed", "operator", False)
    gate.close()


async def test_one_that_died_while_no_client_was_there(client: Agent, gate: Gate) -> None:
    """The next start finds out, and ends what is left."""
    payload = await client.submit(f"echo $$ > pid; {gate.wait}")
    await gate.reached()
    pid = client.supervisor_pid()
    await client.stop()

    os.kill(pid, signal.SIGKILL)
    await client.start()
    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["lost"]) == ("Failed", True)
    assert not alive(int((await client.result(payload["id"])).read("pid")))
    gate.close()


async def test_a_kill_while_it_dies_is_answered(client: Agent, gate: Gate) -> None:
    """200, 409 or 503, never a broken connection; the answer agrees with the end."""
    payload = await client.submit(gate.wait)
    await gate.reached()
    pid = client.supervisor_pid()
    os.kill(pid, signal.SIGSTOP)
    kill = asyncio.create_task(client.kill(payload["id"]))
    await client.portal.get("/live")

    os.kill(pid, signal.SIGKILL)
    answer = await kill
    end = await client.stream.ended(payload["id"])

    assert answer.status in (200, 409, 503)
    if answer.status != 503:
        assert (answer.status == 200) == (end["status"] == "Killed")
    assert (await client.kill(payload["id"])).status in (200, 409)
    gate.close()


async def test_deaths_cost_no_descriptors_and_leave_no_zombie(client: Agent) -> None:
    """However often a supervisor dies."""
    await client.run("true")
    before = len(open_descriptors())
    for _ in range(5):
        pid = client.supervisor_pid()
        os.kill(pid, signal.SIGKILL)
        while processes.read_stat(pid)[0]:
            await client.portal.get("/live")
        assert (await client.run("true"))["status"] == "Completed"

    assert len(open_descriptors()) <= before + 1


async def test_one_that_drops_the_connection_is_met_again(client: Agent, gate: Gate) -> None:
    """It is alive, and so is what it runs: nothing is lost."""
    payload = await client.submit(f"{gate.wait}; exit 6")
    await gate.reached()
    pid = client.supervisor_pid()
    # It serves one client at a time, the newest: as if it had cut a slow one off.
    folder = os.open(client.data_path, os.O_RDONLY)
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    other.connect(f"/proc/self/fd/{folder}/{supervisor.SOCKET_NAME}")
    hello = await asyncio.to_thread(other.recv, 4096)
    assert json.loads(hello)["running"] == [payload["id"]]

    # Ours is taken in its place again.
    assert await asyncio.to_thread(other.recv, 4096) == b""
    gate.open()
    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["exit_code"]) == ("Failed", 6)
    assert client.supervisor_pid() == pid
    other.close()
    os.close(folder)
    gate.close()


async def test_it_runs_nothing_twice(client: Agent, gate: Gate, tmp_path: Path) -> None:
    """An order that comes again, from a client that died right after it: what has `started` is
    never started again, whether it runs or has ended."""
    payload = await client.submit(f"echo started >> {tmp_path}/starts; {gate.wait}; exit 5")
    await gate.reached()
    await client.stop()
    control, work = client.control(payload["id"]), client.work(payload["id"])
    order = {
        "do": "start", "id": payload["id"], "work": str(work / "job"), "run": str(control / "run"),
        "stdout": str(control / "stdout.log"), "stderr": str(control / "stderr.log"),
        "env": {}, "timeout": None, "grace": 1.0,
    }  # fmt: skip
    folder = os.open(client.data_path, os.O_RDONLY)
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.connect(f"/proc/self/fd/{folder}/{supervisor.SOCKET_NAME}")
    lines = own.makefile("rw")

    def ask(times: int) -> list[dict[str, object]]:
        lines.write(json.dumps(order) + "\n")
        lines.flush()
        return [json.loads(lines.readline()) for _ in range(times)]

    hello, again = await asyncio.to_thread(ask, 2)
    gate.open()
    (ended,) = await asyncio.to_thread(lambda: [json.loads(lines.readline())])
    (after,) = await asyncio.to_thread(ask, 1)

    assert hello["running"] == [payload["id"]]
    assert again["say"] == "started"
    assert (ended["say"], ended["exit_code"]) == ("ended", 5)
    assert (after["say"], after["exit_code"]) == ("ended", 5)
    assert (tmp_path / "starts").read_text() == "started\n"
    lines.close()
    own.close()
    os.close(folder)
    gate.close()


async def test_a_file_that_cannot_be_read_was_written_all_the_same(tmp_path: Path) -> None:
    """A damaged record never makes a payload start again."""
    run = tmp_path / "run"
    descriptor = os.open(run, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b'{"boot": "cut sh')
    os.close(descriptor)

    assert run_file.read_run(str(run)) == {"started": {}}
    assert run_file.read_run(str(tmp_path / "none")) == {}


async def test_an_end_that_cannot_be_kept_is_told(client: Agent, gate: Gate) -> None:
    """The disk fails even where room was kept: no other run ends for it, and the next can come."""
    other = Gate(client.data_path.parent, "other")
    ends = await client.submit(f"{gate.wait}; exit 3")
    killed = await client.submit(other.wait)
    await gate.reached()
    await other.reached()
    pid = client.supervisor_pid()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))

    gate.open()
    end = await client.stream.ended(ends["id"])
    answer = await client.kill(killed["id"])

    assert (end["status"], end["exit_code"]) == ("Failed", 3)
    assert answer.status == 200
    assert (await client.stream.ended(killed["id"]))["status"] == "Killed"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert (await client.run("true"))["status"] == "Completed"
    assert client.supervisor_pid() == pid
    other.close()
    gate.close()


async def test_a_run_that_finds_no_room_is_handed_back(client: Agent, gate: Gate) -> None:
    """It never began: no attempt is used for a disk that is full."""
    await client.submit(gate.wait)
    await gate.reached()
    pid = client.supervisor_pid()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))

    end = await client.run("echo started > out.txt", job=7)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    again = await client.run("echo started > out.txt", job=7, attempt=2)

    assert (end["status"], end["handed_back"], end["result"]) == ("Failed", True, None)
    assert "could not be started" in end["reason"]
    assert again["status"] == "Completed"
    gate.close()


async def test_a_long_data_path_works(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Longer than the path of a socket may be."""
    long = tmp_path / ("a" * 100) / ("b" * 100) / "client"

    async with agent(long, session) as client:
        payload = await client.run("pwd")
        await client.restart()
        again = await client.run("pwd")

    assert (payload["status"], again["status"]) == ("Completed", "Completed")
