"""How run.sh can end, and what becomes of its payload."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.agent import Agent, agent
from support.gate import Gate
from support.portal import Files


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


@pytest.mark.parametrize(
    ("files", "status", "exit_code", "fault", "says"),
    [
        ("true", "Completed", 0, None, "ended with 0"),
        ("", "Completed", 0, None, "ended with 0"),
        ("exit 1", "Failed", 1, "user", "exit status 1"),
        ("exit 255", "Failed", 255, "user", "exit status 255"),
        ("exit 256", "Completed", 0, None, "ended with 0"),
        ("false; true", "Completed", 0, None, "ended with 0"),
        ("set -e; false; true", "Failed", 1, "user", "exit status 1"),
        ("no-such-command", "Failed", 127, "user", "exit status 127"),
        ("if then", "Failed", 2, "user", "exit status 2"),
        ("kill -SEGV $$", "Failed", 128 + 11, "user", "signal 11"),
        ("kill -TERM $$", "Failed", 128 + 15, "user", "signal 15"),
        ("kill -HUP $$", "Failed", 128 + 1, "user", "signal 1"),
        ("kill -KILL $$", "Failed", 128 + 9, "infrastructure", "SIGKILL"),
        ("bash -c 'kill -SEGV $$'", "Failed", 128 + 11, "user", "exit status 139"),
        ("exit 139", "Failed", 139, "user", "exit status 139"),
        ("exec true", "Completed", 0, None, "ended with 0"),
        ("exec bash -c 'exit 4'", "Failed", 4, "user", "exit status 4"),
        ("exec >&-; echo x", "Failed", 1, "user", "exit status 1"),
        ("exec 0<&- 1>&- 2>&-; exit 5", "Failed", 5, "user", "exit status 5"),
        ("cd /; true", "Completed", 0, None, "ended with 0"),
        ("trap 'exit 6' EXIT; true", "Failed", 6, "user", "exit status 6"),
        ({"in.txt": "x"}, "Invalid", None, "user", "no run.sh"),
        ({"RUN.SH": "true"}, "Invalid", None, "user", "no run.sh"),
        ("true\r\nexit 0\r\n", "Failed", 2, "user", "Windows line ends (CRLF)"),
        ("ls -l\r\nno-such\r\n", "Failed", 127, "user", "Windows line ends (CRLF)"),
    ],
)
async def test_each_end_is_told(
    client: Agent,
    files: Files | str,
    status: str,
    exit_code: int | None,
    fault: str | None,
    says: str,
) -> None:
    """State, exit status (128 + n for signal n), whose fault, and a reason for a person."""
    payload = await client.run(files)

    assert (payload["status"], payload["exit_code"]) == (status, exit_code)
    assert (payload["fault"], payload["lost"]) == (fault, False)
    assert says in payload["reason"]
    assert (payload["pid"], payload["killed"]) == (0, False)
    assert (await client.retrieve(payload["id"])).status == (200 if status == "Completed" else 204)
    if exit_code is not None:
        result = await client.result(payload["id"])
        assert result.read(".orchestrator/exit_code") == f"{exit_code}\n".encode()


async def test_a_signal_from_outside_is_told(client: Agent, gate: Gate) -> None:
    """As when the system is out of memory: it is nobody's wish, and not the user's fault."""
    payload = await client.submit(gate.wait)
    await gate.reached()
    running = (await client.stream.state(payload["id"], "Running")).payload
    while not running["pid"]:
        running = (await client.retrieve(payload["id"])).json

    os.kill(running["pid"], signal.SIGKILL)
    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["exit_code"], end["killed"]) == ("Failed", 137, False)
    assert end["fault"] == "infrastructure"
    gate.close()


@pytest.mark.parametrize(
    "script", ["sleep 1000", "trap '' TERM; sleep 1000", "while :; do :; done"]
)
async def test_what_runs_too_long_is_ended(client: Agent, script: str) -> None:
    """JOB_TIMEOUT: Failed, by the limit, which the reason names; what was written is kept."""
    await client.restart(job_timeout=0.2, kill_grace=0.1)

    end = await client.run(f"echo half > out.txt; {script}")

    assert (end["status"], end["fault"], end["killed"]) == ("Failed", "limit", False)
    assert "0.2 s (JOB_TIMEOUT)" in end["reason"]
    assert end["exit_code"] in (128 + 15, 128 + 9)
    assert (await client.result(end["id"])).read("out.txt") == b"half\n"


async def test_what_ends_in_time_is_left_alone(client: Agent, gate: Gate) -> None:
    """The limit is each payload's own, from its start."""
    await client.restart(job_timeout=3600.0)
    payload = await client.submit(gate.wait)
    await gate.reached()
    gate.open()

    assert (await client.stream.ended(payload["id"]))["status"] == "Completed"
    gate.close()


async def test_a_limit_holds_while_no_client_is_there(client: Agent, tmp_path: Path) -> None:
    """The supervisor keeps it; the reason is the same after the restart without the setting."""
    await client.restart(job_timeout=0.3, kill_grace=0.1)
    payload = await client.submit(f"echo > {tmp_path}/begun; trap '' TERM; sleep 1000")
    await client.stream.state(payload["id"], "Running")

    await client.stop()
    # Its supervisor ends once nothing runs and no client is there.
    await client.supervisor_gone()
    await client.start(job_timeout=None)

    end = await client.stream.ended(payload["id"])
    assert (end["status"], end["fault"]) == ("Failed", "limit")
    assert "JOB_TIMEOUT" in end["reason"]


def check_usage(payload: dict[str, Any], cpu_s: float) -> None:
    """Times are those of the run, memory is that of a small program."""
    assert cpu_s <= payload["cpu_s"] <= payload["wall_s"] * os.cpu_count() + 0.1
    assert 2**20 < payload["max_rss"] < 2**27


async def test_what_it_used_is_told(client: Agent) -> None:
    """Wall-clock and CPU seconds, with those of its children, and the most memory in bytes."""
    idle = await client.run("sleep 0.2")
    busy = await client.run("""
    spend='until read -ra s < /proc/$$/stat; (( s[13] + s[14] >= 20 )); do :; done'
    bash -c "$spend"
    eval "$spend"
    """)
    large = await client.run("""head -c 50000000 /dev/zero | tail -c 50000000 | wc -c""")

    check_usage(idle, 0.0)
    assert idle["wall_s"] >= 0.2
    # Twenty ticks of 10 ms in a child, and twenty in run.sh itself.
    check_usage(busy, 0.35)
    assert large["max_rss"] > 50_000_000


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("true", ""),
        ("echo ouch >&2", "ouch\n"),
        ("printf '%05000d' 7 >&2", "0" * 4095 + "7"),
        (r"printf 'a\xff\xfeb' >&2", "a\ufffd\ufffdb"),
        (r"printf 'a\0b' >&2", "a\0b"),
        ("echo ouch >&2; exit 3", "ouch\n"),
    ],
)
async def test_the_end_of_stderr_is_told(client: Agent, script: str, expected: str) -> None:
    """Its last 4 KiB; what is not UTF-8 is replaced."""
    payload = await client.run(script)

    assert payload["stderr_tail"] == expected


async def test_nothing_is_told_of_what_did_not_run(client: Agent) -> None:
    """An Invalid payload has no exit status, no times and no result."""
    payload = await client.run({"in.txt": "x"})

    for name in ("exit_code", "wall_s", "cpu_s", "max_rss", "stderr_tail", "result"):
        assert payload[name] is None, name


async def test_a_run_sh_that_became_a_directory_is_invalid(client: Agent, gate: Gate) -> None:
    """Whatever stands under that name, there must be a file to run."""
    for _ in range(2):
        await client.submit(gate.wait)
        await gate.reached()
    payload = await client.submit("true")
    run_sh = client.work(payload["id"]) / "job" / "run.sh"
    run_sh.unlink()
    run_sh.mkdir()
    gate.open(2)

    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["fault"]) == ("Invalid", "user")
    gate.close()


async def test_what_cannot_be_started_is_lost(client: Agent, gate: Gate) -> None:
    """Its working directory vanished before it began: another attempt may have more luck."""
    for _ in range(2):
        await client.submit(gate.wait)
        await gate.reached()
    payload = await client.submit("true")
    (client.control(payload["id"]) / "stdout.log").mkdir()
    gate.open(2)

    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["fault"], end["lost"]) == ("Failed", "infrastructure", True)
    assert "could not be started" in end["reason"]
    gate.close()
