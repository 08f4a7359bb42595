"""What the kernel kills as memory runs out is not lost with its machine: it needs more of it."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client.processes import oom_counter, read_oom_kills
from support.agent import agent, start_supervisor

#: Where control groups are made, and what limits memory in one, without and with what is swapped:
#: version 1, then 2.
GROUPS = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
)
LIMIT = 128 << 20
GREEDY = f"{sys.executable} -c 'x = bytearray(300 << 20)'"

#: What the kernel writes: memory.events (Linux 5.15), memory.oom_control (4.18), vmstat (5.10).
COUNTERS = {
    "low 0\nhigh 0\nmax 31\noom 4\noom_kill 3\n": 3,
    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n": 2,
    "nr_free_pages 1\noom_kill 5\nnuma_hit 7\n": 5,
    "low 0\nhigh 0\nmax 0\noom 0\n": None,
    "": None,
}


@pytest.mark.parametrize(("content", "count"), COUNTERS.items())
def test_what_the_kernel_counts_is_read(tmp_path: Path, content: str, count: int | None) -> None:
    """As each of its files has it; one that does not tell is not believed."""
    (tmp_path / "counter").write_text(content)

    assert read_oom_kills(str(tmp_path / "counter")) == count
    assert read_oom_kills(str(tmp_path / "none")) is None


def test_there_is_a_counter() -> None:
    """On each Linux since 4.13 at least that of the whole machine."""
    assert read_oom_kills(oom_counter()) is not None


def limited_group() -> Path | None:
    """A new control group in which memory runs out; None where none can be made."""
    for folder, limit, swap in GROUPS:
        path = Path(folder) / f"orchestrator-{os.getpid()}"
        with contextlib.suppress(OSError):
            path.mkdir()
            if (path / limit).exists():
                (path / limit).write_text(str(LIMIT))
                if (path / swap).exists():
                    (path / swap).write_text("0" if swap == "memory.swap.max" else str(LIMIT))
                return path
            path.rmdir()
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with 128 MiB of memory."""
    path = limited_group()
    if path is None:
        pytest.skip("no control group can be made here")
    yield path
    while (path / "cgroup.procs").read_text():
        time.sleep(0.005)
    path.rmdir()


@pytest.mark.parametrize("script", [f"exec {GREEDY}", f"{GREEDY}; exit $?"])
async def test_a_run_that_needs_too_much_memory_comes_to_a_limit(
    tmp_path: Path, session: aiohttp.ClientSession, group: Path, script: str
) -> None:
    """Whether the kernel kills run.sh itself or what that calls. It is not lost: it would need as
    much again."""
    async with agent(tmp_path / "client", session) as client:
        enter = f'echo $$ > {group}/cgroup.procs; exec "$0" "$@"'
        await start_supervisor(client.data_path, "/bin/bash", "-c", enter)

        end = await client.run(script)

        assert (end["status"], end["fault"], end["lost"]) == ("Failed", "limit", False)
        assert (end["exit_code"], "out of memory" in end["reason"]) == (137, True)


async def test_another_sigkill_is_the_machines_fault(
    tmp_path: Path, session: aiohttp.ClientSession, group: Path
) -> None:
    """Also where the kernel has killed others before: only what it counts meanwhile matters."""
    async with agent(tmp_path / "client", session) as client:
        enter = f'echo $$ > {group}/cgroup.procs; exec "$0" "$@"'
        await start_supervisor(client.data_path, "/bin/bash", "-c", enter)
        await client.run(GREEDY)

        killed = await client.run("kill -9 $$")
        passed_on = await client.run("exit 137")

    assert (killed["fault"], killed["lost"], killed["exit_code"]) == ("infrastructure", False, 137)
    assert (passed_on["fault"], passed_on["exit_code"]) == ("user", 137)


async def test_a_sigkill_from_outside_is_the_machines_fault(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """It is Failed with an exit status; the server decides whether it is tried again."""
    async with agent(tmp_path / "client", session) as client:
        end = await client.run("kill -9 $$")

    assert (end["status"], end["fault"], end["lost"]) == ("Failed", "infrastructure", False)
    assert (end["exit_code"], "SIGKILL" in end["reason"]) == (137, True)
