"""POST /kill: a payload ends because somebody asks for it."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client import runner
from orchestrator_shared.protocol import H_PROTOCOL
from support.agent import Agent, agent, claim
from support.errors import check_error
from support.gate import Gate
from support.limits import files_no_larger_than


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with one slot and a long grace: what dies at once did so from SIGTERM."""
    async with agent(tmp_path / "client", session, slots=1, kill_grace=3600.0) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


async def test_a_prepared_payload_is_killed_before_it_starts(
    client: Agent, gate: Gate, tmp_path: Path
) -> None:
    """Killed when /kill answers, and never run: neither when a slot is free nor after a restart."""
    first = await client.submit(gate.wait)
    await gate.reached()
    waits = await client.submit(f"touch {tmp_path}/started")

    answer = await client.kill(waits["id"])
    gate.open()
    await client.stream.ended(first["id"])
    await client.run("true")
    await client.restart()
    await client.run("true")

    assert answer.status == 200
    assert (answer.json["status"], answer.json["killed"]) == ("Killed", True)
    assert answer.json["fault"] == "operator"
    assert not (tmp_path / "started").exists()
    assert (await client.retrieve(waits["id"])).status == 204
    assert (await client.result(waits["id"])).namelist() == ["run.sh"]


async def test_what_is_being_killed_does_not_start_meanwhile(
    client: Agent, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot becomes free while a Prepared one is killed, which takes as long as its packing."""
    monkeypatch.setattr(runner, "PACK_AGAIN", 0.01)
    await client.submit(gate.wait)
    await gate.reached()
    waits = await client.submit({"run.sh": f"touch {tmp_path}/started", "data": os.urandom(10_000)})
    with files_no_larger_than(2000):
        kill = asyncio.create_task(client.kill(waits["id"]))
        while not (await client.retrieve(waits["id"])).json["killed"]:
            pass
        gate.open()
        while (await client.portal.get("/health")).json["slots_in_use"]:
            pass
        # Another that came later has its turn before the packing is done.
        assert (await client.run({"in.txt": "x"}))["status"] == "Invalid"

    assert (await kill).status == 200
    assert (await client.stream.ended(waits["id"]))["status"] == "Killed"
    assert not (tmp_path / "started").exists()


async def test_a_kill_does_not_overtake_the_start(client: Agent) -> None:
    """The first payload starts the supervisor too: a kill that comes before that is there."""
    payload = await client.submit("sleep 1000")

    answer = await client.kill(payload["id"])

    assert payload["pid"] == 0
    assert answer.status == 200
    assert (await client.stream.ended(payload["id"]))["status"] == "Killed"


async def test_many_prepared_payloads_are_killed_at_once(client: Agent, tmp_path: Path) -> None:
    """While slots become free: what is killed before it starts never starts."""
    script = f'echo "$ORCH_JOB_ID" >> {tmp_path}/starts'
    payloads = [await client.submit(script, job=job) for job in range(40)]

    answers = await asyncio.gather(*(client.kill(payload["id"]) for payload in payloads))
    ends = [await client.stream.ended(payload["id"]) for payload in payloads]

    starts = (tmp_path / "starts").read_text() if (tmp_path / "starts").exists() else ""
    begun = [int(line) for line in starts.splitlines()]
    assert len(begun) == len(set(begun))
    for job, (answer, end) in enumerate(zip(answers, ends, strict=True)):
        if end["reason"] == "terminated before it was started":
            assert job not in begun
        assert (answer.status == 200) == (end["status"] == "Killed")


async def test_sigterm_goes_to_the_whole_group(client: Agent, gate: Gate) -> None:
    """run.sh and all that it has started get the chance to end by themselves."""
    script = f"""
    bash -c 'trap "echo child >> told; exit" TERM; {gate.wait}' &
    child=$!
    trap 'wait $child; echo run.sh >> told; exit 7' TERM
    wait $child
    """
    payload = await client.submit(script)
    await gate.reached()

    answer = await client.kill(payload["id"])
    end = await client.stream.ended(payload["id"])

    assert (answer.status, answer.json["killed"]) == (200, True)
    assert (end["status"], end["fault"], end["exit_code"]) == ("Killed", "operator", 7)
    assert end["reason"] == "terminated on request"
    assert (await client.result(payload["id"])).read("told") == b"child\nrun.sh\n"
    gate.close()


async def test_a_run_sh_that_ends_well_on_sigterm_is_killed_all_the_same(
    client: Agent, gate: Gate
) -> None:
    """It ended because somebody asked for it, whatever it exits with."""
    payload = await client.submit(f"trap 'exit 0' TERM; {gate.wait}")
    await gate.reached()

    await client.kill(payload["id"])
    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["exit_code"]) == ("Killed", 0)
    gate.close()


async def test_sigkill_follows_where_sigterm_is_ignored(client: Agent, gate: Gate) -> None:
    """After KILL_GRACE, to the whole group; what had been written is kept."""
    await client.restart(kill_grace=0.2)
    payload = await client.submit(f"trap '' TERM; echo half > out.txt; (sleep 1000)& {gate.wait}")
    await gate.reached()

    answer = await client.kill(payload["id"])
    end = await client.stream.ended(payload["id"])

    assert answer.status == 200
    assert (end["status"], end["exit_code"]) == ("Killed", 128 + 9)
    assert (await client.result(payload["id"])).read("out.txt") == b"half\n"
    gate.close()


async def test_before_the_grace_is_over_nothing_is_forced(client: Agent, gate: Gate) -> None:
    """What needs its time to end gets it."""
    payload = await client.submit(
        f"trap '{gate.wait}; echo tidy > out.txt; exit' TERM; {gate.wait}"
    )
    await gate.reached()

    await client.kill(payload["id"])
    await gate.reached()
    again = await client.kill(payload["id"])
    gate.open()
    end = await client.stream.ended(payload["id"])

    assert (again.status, again.json["status"]) == (200, "Running")
    assert end["status"] == "Killed"
    assert (await client.result(payload["id"])).read("out.txt") == b"tidy\n"
    gate.close()


@pytest.mark.parametrize(
    ("files", "status"),
    [("exit 0", "Completed"), ("exit 3", "Failed"), ({"in.txt": "no run.sh"}, "Invalid")],
)
async def test_what_has_ended_stays_as_it_is(
    client: Agent, files: dict[str, bytes | str] | str, status: str
) -> None:
    """409, with the state that it has; also after a restart."""
    payload = await client.run(files)

    first = await client.kill(payload["id"])
    await client.restart()
    second = await client.kill(payload["id"])

    for answer in (first, second):
        assert (answer.status, answer.json["status"]) == (409, status)
        assert answer.json["killed"] is False
    assert first.json == second.json


async def test_what_was_killed_is_killed_again(client: Agent, gate: Gate) -> None:
    """200 each time, also after a restart: a repeated request changes nothing."""
    payload = await client.submit(gate.wait)
    await gate.reached()
    await client.kill(payload["id"])
    await client.stream.ended(payload["id"])

    first = await client.kill(payload["id"])
    await client.restart()
    second = await client.kill(payload["id"])

    assert (first.status, second.status) == (200, 200)
    assert first.json == second.json
    assert (first.json["status"], first.json["killed"]) == ("Killed", True)
    gate.close()


async def test_what_was_dropped_cannot_be_killed(client: Agent) -> None:
    """409: it had ended before."""
    payload = await client.run("true", job=1)
    await client.stream.acknowledge(1)
    await client.stream.state(payload["id"], "Cleaned")

    answer = await client.kill(payload["id"])

    assert (answer.status, answer.json["status"]) == (409, "Cleaned")


async def test_only_the_attempt_that_is_asked_for_is_killed(client: Agent, gate: Gate) -> None:
    """404 for an id that there is not, and for another job's; 426 for another protocol."""
    payload = await client.submit(gate.wait, job=1)
    await gate.reached()

    async def kill(id: int, headers: dict[str, str]) -> int:
        return (await client.portal.post(f"/kill/{id}", headers=headers)).status

    check_error(await client.kill(1), 404, id=1)
    assert await kill(payload["id"], claim(2)) == 404
    assert await kill(payload["id"], claim(1, 2)) == 404
    assert await kill(payload["id"], claim(1, server="another")) == 404
    assert await kill(payload["id"], {**claim(1), H_PROTOCOL: "9"}) == 426
    assert (await client.retrieve(payload["id"])).json["killed"] is False
    assert await kill(payload["id"], claim(1)) == 200
    gate.close()


async def test_what_runs_into_its_limit_is_not_killed_by_anybody_else(
    client: Agent, gate: Gate
) -> None:
    """How it ends is decided: 409, and the end says that it was the limit."""
    await client.restart(job_timeout=0.2)
    payload = await client.submit(f"trap '{gate.wait}; exit' TERM; sleep 1000 & wait")
    await gate.reached()

    answer = await client.kill(payload["id"])
    gate.open()
    end = await client.stream.ended(payload["id"])
    after = await client.kill(payload["id"])

    assert (answer.status, after.status) == (409, 409)
    assert (end["status"], end["fault"], end["killed"]) == ("Failed", "limit", False)
    gate.close()
