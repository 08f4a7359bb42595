"""What run.sh finds when it begins."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.agent import Agent, agent, claim

#: What bash sets by itself.
OF_BASH = {"PWD", "OLDPWD", "SHLVL", "_"}


@pytest.fixture
async def client(
    tmp_path: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Agent]:
    """A client whose own environment has a secret, and variables that its jobs are to get."""
    monkeypatch.setenv("SECRET", "s3cr3t")
    monkeypatch.setenv("GIVEN", "line one\nline two = ü")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("MISSING", raising=False)
    changes = {"job_env": ("GIVEN", "EMPTY", "MISSING", "HOME"), "cpus_per_slot": 3}
    async with agent(tmp_path / "client", session, **changes) as own:
        yield own


async def test_it_gets_its_environment_and_no_other(client: Agent) -> None:
    """Exactly these variables, beside what bash itself sets."""
    payload = await client.run("env -0 > env", job=42, attempt=7, service="Ha-dd.ock")
    raw = (await client.result(payload["id"])).read("env").decode()

    found = dict(line.split("=", 1) for line in raw.rstrip("\0").split("\0"))
    work = client.work(payload["id"])
    assert {name: value for name, value in found.items() if name not in OF_BASH} == {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "ORCH_JOB_ID": "42",
        "ORCH_ATTEMPT": "7",
        "ORCH_SERVICE": "ha_dd_ock",
        "ORCH_CPUS": "3",
        "GIVEN": "line one\nline two = ü",
        "EMPTY": "",
    }


async def test_without_a_server_the_payload_is_the_job(client: Agent) -> None:
    """A job that came with curl has the id of its payload, and is the first attempt."""
    script = 'echo $ORCH_JOB_ID $ORCH_ATTEMPT "[$ORCH_SERVICE]" > out'
    id = (await client.try_submit(script, {})).json["id"]
    answer = await client.retrieve(id)
    while answer.status == 202:
        answer = await client.retrieve(id)

    assert answer.zip.read("out").decode() == f"{id} 1 []\n"


async def test_it_is_run_by_bash_in_its_working_directory(client: Agent) -> None:
    """Not by sh, and not by whatever its first line names."""
    files = {
        "run.sh": '#!/usr/bin/false\nshopt -q -o posix && exit 9\necho "$BASH_VERSION"; pwd; ls',
        "in.txt": "x",
    }
    payload = await client.run(files)
    printed = (await client.result(payload["id"])).read(".orchestrator/stdout.log").decode()

    version, folder, *names = printed.splitlines()
    assert re.match(r"\d+\.\d+", version)
    assert folder == str(client.work(payload["id"]) / "job") == payload["loc"]
    assert names == ["in.txt", "run.sh"]


async def test_it_reads_nothing_from_stdin(client: Agent) -> None:
    """stdin is /dev/null: what waits for input ends."""
    assert await client.printed("readlink /proc/self/fd/0; cat; read -r x || echo end") == (
        "/dev/null\nend\n"
    )


async def test_what_it_makes_is_its_own(client: Agent) -> None:
    """umask 077."""
    assert await client.printed("umask; touch f; mkdir d; stat -c %a f d") == "0077\n600\n700\n"


async def test_it_has_only_three_descriptors(client: Agent, tmp_path: Path) -> None:
    """No lock, no socket, no log of the client; nor what whoever started that left open."""
    stray = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        printed = await client.printed("ls /proc/$$/fd; exit 0")
    finally:
        os.close(stray)

    # bash reads the script from a descriptor of its own, 255.
    assert printed.split() == ["0", "1", "2", "255"]


async def test_it_leads_a_process_group_and_holds_no_signal(client: Agent) -> None:
    """Its group is its own, nothing is ignored or blocked, and it is nobody's terminal."""
    script = """
    read -r _ _ _ _ group session terminal _ < /proc/$$/stat
    echo $(( group == $$ )) $(( session == $$ )) $terminal
    grep -E 'Sig(Blk|Ign)' /proc/self/status
    """

    first, blocked, ignored = (await client.printed(script)).splitlines()

    assert first == "1 0 0"
    standard = 2**31 - 1
    assert int(blocked.split()[1], 16) & standard == 0
    assert int(ignored.split()[1], 16) & standard == 0


async def test_home_and_tmpdir_are_its_own_and_go_with_it(client: Agent) -> None:
    """They exist, are empty, are not in the result, and are removed with the payload."""
    script = """
    ls -A "$HOME" "$TMPDIR"
    echo x > "$HOME/.cache"; mktemp > /dev/null; cd; pwd
    stat -c %a "$HOME" "$TMPDIR"
    """
    payload = await client.run(script)
    work = client.work(payload["id"])
    result = await client.result(payload["id"])

    home, tmp = work / "home", work / "tmp"
    printed = result.read(".orchestrator/stdout.log").decode()
    assert printed == f"{home}:\n\n{tmp}:\n{home}\n700\n700\n"
    logs = {f".orchestrator/{name}" for name in ("stdout.log", "stderr.log", "exit_code")}
    assert set(result.namelist()) == {"run.sh", *logs}
    while work.exists():
        await client.portal.get("/live")


async def test_two_that_run_at_once_have_nothing_in_common(client: Agent) -> None:
    """Directory, HOME and TMPDIR differ."""
    first = await client.printed("pwd; echo $HOME $TMPDIR")
    second = await client.printed("pwd; echo $HOME $TMPDIR")

    assert not set(first.split()) & set(second.split())


async def test_file_names_mean_nothing_to_anybody(client: Agent) -> None:
    """Names that look like flags, commands or escapes are names."""
    payload = await client.run({"-rf": "", "run.sh": "ls", "$(false)": "", "a\\b": ""}, job=1)

    assert payload["status"] == "Completed"
    printed = (await client.result(payload["id"])).read(".orchestrator/stdout.log").decode()
    assert sorted(printed.splitlines()) == sorted(["$(false)", "-rf", "a\\b", "run.sh"])
    assert (await client.try_submit("true", claim(1))).json["id"] == payload["id"]
