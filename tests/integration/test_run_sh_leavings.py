"""What run.sh leaves running, prints and does to itself."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client import processes
from support.agent import Agent, agent
from support.gate import Gate

MIB = 2**20


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return processes.read_stat(pid)[0] not in ("", "Z", "X")


@pytest.mark.parametrize(
    "leave",
    [
        "sleep 1000 & echo $! >> pids",
        "(trap '' TERM HUP; echo $BASHPID >> pids; sleep 1000) &",
        "nohup sleep 1000 > /dev/null 2>&1 & echo $! >> pids",
        "for i in {1..20}; do sleep 1000 & echo $! >> pids; done",
        "(sleep 1000 & echo $! >> pids; exec sleep 1000) & echo $! >> pids",
    ],
)
@pytest.mark.parametrize("end", ["exit 0", "exit 1", "kill -9 $$"])
async def test_what_is_left_of_its_group_is_killed(client: Agent, leave: str, end: str) -> None:
    """Before anything is packed: when its end is told, nothing of it is there any more."""
    wait = "until [ -s pids ]; do :; done"
    payload = await client.run(f"{leave}\n{wait}\n{end}")

    result = await client.result(payload["id"])
    pids = [int(line) for line in result.read("pids").split()]
    assert pids
    assert [pid for pid in pids if alive(pid)] == []


async def test_what_is_left_writes_nothing_into_the_result(client: Agent) -> None:
    """A child that goes on writing is dead before its files are packed."""
    script = """
    (while :; do echo line >> grows; done) &
    until [ -s grows ]; do :; done
    """
    payload = await client.run(script)
    first = (await client.result(payload["id"])).read("grows")

    assert payload["status"] == "Completed"
    assert first.endswith(b"line\n")
    assert ".orchestrator/skipped.txt" not in (await client.result(payload["id"])).namelist()


async def test_an_orphan_of_its_group_is_killed_too(client: Agent) -> None:
    """Its parent is gone, and nobody waits for it."""
    payload = await client.run(
        "mkfifo up; ( (echo $BASHPID > pid; echo > up; exec sleep 1000) & ); read -r x < up; rm up"
    )

    result = await client.result(payload["id"])
    assert not alive(int(result.read("pid")))


async def test_a_zombie_that_nobody_collects_is_not_waited_for(client: Agent) -> None:
    """Its parent has left the group, and does not look after it: it runs no more, and writes
    nothing."""
    payload = await client.run(f"""
{sys.executable} - <<'END' &
import os, time
if os.fork() == 0:
    time.sleep(1000)
os.setsid()
with open("parent", "w") as file:
    print(os.getpid(), file=file, flush=True)
    time.sleep(1000)
END
until [ -s parent ]; do :; done
""")

    parent = int((await client.result(payload["id"])).read("parent"))
    os.kill(parent, signal.SIGKILL)
    assert payload["reason"] == "run.sh ended with 0"
    assert (await client.portal.get("/health")).json["slots_in_use"] == 0


@pytest.mark.parametrize("number", ["9", "15"])
async def test_what_a_kill_leaves_is_killed_too(client: Agent, tmp_path: Path, number: str) -> None:
    """Also where run.sh itself ends at the first signal and its children do not."""
    gate = Gate(tmp_path)
    payload = await client.submit(f"(trap '' TERM; echo $BASHPID > pid; {gate.wait}) & wait")
    await gate.reached()

    await client.kill(payload["id"])
    end = await client.stream.ended(payload["id"])

    result = await client.result(payload["id"])
    assert (end["status"], end["exit_code"]) == ("Killed", 128 + 15)
    assert not alive(int(result.read("pid")))
    gate.close()


async def test_what_it_prints_costs_no_memory(client: Agent) -> None:
    """A hundred megabytes go straight to the disk, and from there into the zip."""
    await client.run("true")
    pids = (os.getpid(), client.supervisor_pid())

    def highest() -> list[int]:
        lines = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in pids]
        return [int(line.split()[1]) * 1024 for of in lines for line in of if "VmHWM" in line]

    before = highest()
    payload = await client.run("yes 0123456789abcde | head -c 100000000; echo end >&2")
    after = highest()

    assert payload["status"] == "Completed"
    assert max(b - a for a, b in zip(before, after, strict=True)) < 30 * MIB
    result = await client.result(payload["id"])
    assert result.getinfo(".orchestrator/stdout.log").file_size == 100_000_000
    assert payload["result"]["size"] < 10_000_000


async def test_what_it_prints_after_closing_its_output_is_nowhere(client: Agent) -> None:
    """What came before is there, what it opens itself is its own file."""
    payload = await client.run("echo before; exec 1>&- 2>own.log; echo lost; echo kept >&2; exit 0")

    result = await client.result(payload["id"])
    assert result.read(".orchestrator/stdout.log") == b"before\n"
    assert result.read(".orchestrator/stderr.log") == b""
    assert b"kept\n" in result.read("own.log")


async def test_it_may_go_away_and_become_another_program(client: Agent) -> None:
    """The working directory is packed wherever run.sh went, and whatever it became."""
    payload = await client.run("echo x > out.txt; cd /; exec bash -c 'echo $PWD; exit 0'")

    result = await client.result(payload["id"])
    assert payload["status"] == "Completed"
    assert result.read("out.txt") == b"x\n"
    assert result.read(".orchestrator/stdout.log") == b"/\n"


async def test_it_may_take_its_own_script_away(client: Agent) -> None:
    """bash has it open; the result has no run.sh then."""
    payload = await client.run("rm run.sh\necho still here")

    result = await client.result(payload["id"])
    assert payload["status"] == "Completed"
    assert "run.sh" not in result.namelist()
    assert result.read(".orchestrator/stdout.log") == b"still here\n"


@pytest.mark.parametrize(
    "script",
    [
        'rm -rf "$PWD"',
        "cd ..; rm -rf job",
        'rm -rf "$(dirname "$PWD")"',
        "cd ..; mv job elsewhere",
        'rm -rf "$PWD"; touch "$PWD"',
        'rm -rf "$PWD"; ln -s /etc "$PWD"',
        "chmod 0 . ..",
        'rmdir "$HOME"; ln -s /etc "$HOME"',
    ],
)
async def test_it_may_take_its_directory_away(client: Agent, script: str) -> None:
    """It ends as it ends; nothing of any other place is packed, and nothing is left behind."""
    payload = await client.run(f"{script}\nexit 0")

    assert payload["status"] == "Completed"
    names = (await client.result(payload["id"])).namelist()
    assert [name for name in names if not name.startswith(".orchestrator/")] in ([], ["run.sh"])
    assert (await client.result(payload["id"])).read(".orchestrator/exit_code") == b"0\n"
    await client.stream.acknowledge(payload["job"])
    while client.work(payload["id"]).exists():
        await client.portal.get("/live")
    assert (await client.run("true"))["status"] == "Completed"


async def test_others_are_not_harmed(client: Agent, tmp_path: Path) -> None:
    """One that removes what it can reach by its names leaves its neighbour alone."""
    gate = Gate(tmp_path)
    neighbour = await client.submit(f"{gate.wait}; echo fine > out.txt")
    await gate.reached()

    await client.run('rm -rf "$HOME" "$TMPDIR" ../* ./*')
    gate.open()

    assert (await client.stream.ended(neighbour["id"]))["status"] == "Completed"
    assert (await client.result(neighbour["id"])).read("out.txt") == b"fine\n"
    gate.close()
