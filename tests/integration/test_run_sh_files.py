"""The files that run.sh leaves, and how they come back."""

import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.agent import Agent, agent

LOGS = {f".orchestrator/{name}" for name in ("stdout.log", "stderr.log", "exit_code")}


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


async def test_everything_in_the_working_directory_comes_back(client: Agent) -> None:
    """Inputs and outputs, under their relative paths, empty files and empty directories too."""
    script = "mkdir -p a/b empty; echo deep > a/b/c.txt; : > nothing; printf 'x\\0y' > 'sp ace'"
    payload = await client.run({"run.sh": script, "in.txt": "input"})

    result = await client.result(payload["id"])

    names = {"run.sh", "in.txt", "a/", "a/b/", "a/b/c.txt", "empty/", "nothing", "sp ace"}
    assert set(result.namelist()) == names | LOGS
    assert result.read("in.txt") == b"input"
    assert result.read("a/b/c.txt") == b"deep\n"
    assert result.read("nothing") == b""
    assert result.read("sp ace") == b"x\0y"
    assert result.testzip() is None


@pytest.mark.parametrize("end", ["exit 0", "exit 9"])
async def test_what_is_forged_does_not_count(client: Agent, end: str) -> None:
    """A job's own .orchestrator is left out and named; the real exit status is in its place."""
    forge = "mkdir .orchestrator; echo 42 > .orchestrator/exit_code; echo x > .orchestrator/more"

    payload = await client.run(f"{forge}; {end}")

    result = await client.result(payload["id"])
    assert sorted(result.namelist()) == sorted({"run.sh", ".orchestrator/skipped.txt"} | LOGS)
    assert result.read(".orchestrator/exit_code").decode() == f"{end.split()[1]}\n"
    assert payload["exit_code"] == int(end.split()[1])
    assert b".orchestrator\t" in result.read(".orchestrator/skipped.txt")


async def test_modes_come_back(client: Agent) -> None:
    """Of files and directories; what nobody may write to is packed and removed all the same."""
    script = """
    echo a > plain; echo b > tool; chmod 750 tool; echo c > fixed; chmod 444 fixed
    mkdir shut; echo d > shut/in; chmod 555 shut
    """
    payload = await client.run(script)

    result = await client.result(payload["id"])

    modes = {
        info.filename: stat.S_IMODE(info.external_attr >> 16)
        for info in result.infolist()
        if info.filename not in LOGS | {"run.sh"}
    }
    assert modes == {
        "plain": 0o600,
        "tool": 0o750,
        "fixed": 0o444,
        "shut/": 0o555,
        "shut/in": 0o600,
    }
    assert result.read("shut/in") == b"d\n"
    while client.work(payload["id"]).exists():
        await client.portal.get("/live")


async def test_a_file_that_nobody_may_read_ends_nothing(client: Agent) -> None:
    """It is in the result, or named as left out where the client may not read it."""
    payload = await client.run("echo secret > locked; chmod 0 locked; echo x > out.txt")

    result = await client.result(payload["id"])

    assert payload["status"] == "Completed"
    assert result.read("out.txt") == b"x\n"
    if "locked" in result.namelist():
        assert result.read("locked") == b"secret\n"
        assert result.getinfo("locked").external_attr >> 16 == stat.S_IFREG
    else:
        assert b"locked\t" in result.read(".orchestrator/skipped.txt")


async def test_what_is_no_file_is_named(client: Agent) -> None:
    """FIFOs, sockets and links that lead out are left out, and hold nothing up."""
    script = "mkfifo pipe; ln -s /etc/passwd out; ln -s nowhere dead; echo x > a; ln -s a b"

    payload = await client.run(script)

    result = await client.result(payload["id"])
    assert set(result.namelist()) == {"run.sh", "a", "b", ".orchestrator/skipped.txt"} | LOGS
    assert result.read("b") == b"x\n"
    skipped = result.read(".orchestrator/skipped.txt").decode()
    assert [line.split("\t")[0] for line in skipped.splitlines()] == ["dead", "out", "pipe"]


async def test_what_does_not_shrink_comes_back(client: Agent) -> None:
    """Random bytes among text."""
    payload = await client.run(
        "head -c 3000000 /dev/urandom > r; sha256sum < r | tee sum; seq 1e5 > t"
    )

    result = await client.result(payload["id"])

    assert result.testzip() is None
    assert len(result.read("r")) == 3_000_000
    assert result.read("sum") == result.read(".orchestrator/stdout.log")


async def test_many_files_come_back(client: Agent) -> None:
    """Two thousand of them, in directories of their own depth."""
    script = (
        "for d in {1..40}; do mkdir -p $d/x; for f in {1..50}; do echo $f > $d/x/$f; done; done"
    )

    payload = await client.run(script)

    result = await client.result(payload["id"])
    assert len([name for name in result.namelist() if not name.endswith("/")]) == 2000 + 4
    assert result.read("40/x/50") == b"50\n"


async def test_a_very_deep_directory_ends_nothing(client: Agent) -> None:
    """Deeper than the system takes a path: packed whole, and removed."""
    script = """
    deep=$(printf 'dddd/%.0s' {1..450})
    for i in 1 2; do mkdir -p "$deep" && cd "$deep" || exit 3; done
    echo x > end
    """

    payload = await client.run(script)

    assert payload["status"] == "Completed"
    deepest = "dddd/" * 900 + "end"
    assert (await client.result(payload["id"])).read(deepest) == b"x\n"
    while client.left() != [f"payloads/{payload['id']}"]:
        await client.portal.get("/live")


async def test_a_file_that_is_still_written_to_ends_nothing(client: Agent, tmp_path: Path) -> None:
    """By something that left the process group of run.sh: its payload ends, and is whole."""
    script = f"""
    setsid bash -c 'echo $$ > {tmp_path}/pid; while [ -e grows ]; do echo x >> grows; done' &
    until [ -s {tmp_path}/pid ]; do :; done
    """
    payload = await client.run({"run.sh": script, "grows": "x\n" * 10})
    # It ends by itself once the working directory is gone.
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    assert payload["status"] == "Completed"
    assert (await client.result(payload["id"])).testzip() is None
