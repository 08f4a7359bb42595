"""How long an attempt may run: what its service says, and what the client allows."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.agent import Agent, agent, claim
from support.gate import Gate


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client that kills at once."""
    async with agent(tmp_path / "client", session, kill_grace=0.0) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


def limited(job: int, seconds: object) -> dict[str, str]:
    """The headers of an attempt that may run for so long."""
    return {**claim(job), "Orchestrator-Limit": str(seconds)}


async def submit(client: Agent, job: int, seconds: object, script: str) -> dict[str, Any]:
    """Hand over an attempt that may run for so long; gives its payload."""
    answer = await client.try_submit(script, limited(job, seconds))
    assert answer.status == 200, answer
    payload: dict[str, Any] = answer.json
    return payload


@pytest.mark.parametrize(
    ("own", "of_service", "named"),
    [
        (None, 0.05, "0.05 s (MAX_RUNTIME of its service)"),
        (3600.0, 0.05, "0.05 s (MAX_RUNTIME of its service)"),
        (0.05, 3600, "0.05 s (JOB_TIMEOUT)"),
    ],
)
async def test_the_shorter_limit_counts(
    client: Agent, gate: Gate, own: float | None, of_service: float, named: str
) -> None:
    """The end is Failed with the fault `limit`, and the reason names whose limit it was."""
    await client.restart(job_timeout=own)

    payload = await submit(client, 1, of_service, gate.wait)
    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["fault"], end["lost"]) == ("Failed", "limit", False)
    assert end["reason"] == f"run.sh ran longer than {named}"
    gate.close()


async def test_a_limit_on_the_stream_counts_too(client: Agent, gate: Gate) -> None:
    """A small job has it in the head of its message."""
    script = gate.wait.encode()
    file = {"name": "run.sh", "size": len(script), "sha256": sha256(script)}
    head = {"job": 3, "attempt": 1, "service": "example", "limit_s": 0.05, "files": [file]}

    await client.stream.say("submit", head, script)
    payload = await client.stream.of_attempt(3, 1)
    end = await client.stream.ended(payload["id"])

    assert (end["fault"], "MAX_RUNTIME" in end["reason"]) == ("limit", True)
    gate.close()


async def test_a_limit_outlives_a_restart(client: Agent, gate: Gate) -> None:
    """Of a payload that waits, it lies on the disk; of one that runs, the supervisor has it."""
    await client.restart(slots=1)
    first = await submit(client, 1, 3600, f"{gate.wait}; {gate.wait}")
    await gate.reached()
    second = await submit(client, 2, 0.05, gate.wait)
    await client.restart()
    gate.open(2)
    await client.stream.ended(first["id"])

    end = await client.stream.ended(second["id"])

    assert (end["fault"], "MAX_RUNTIME" in end["reason"]) == ("limit", True)
    gate.close()


async def test_the_reason_is_that_of_the_limit_that_ended_it(client: Agent, gate: Gate) -> None:
    """The client may have been started again without JOB_TIMEOUT before it hears of the end."""
    await client.restart(job_timeout=0.2)
    payload = await client.submit(gate.wait)
    await client.restart(job_timeout=None)

    end = await client.stream.ended(payload["id"])

    assert end["reason"] == "run.sh ran longer than 0.2 s (JOB_TIMEOUT)"
    gate.close()


async def test_the_same_attempt_with_another_limit_is_the_same_payload(
    client: Agent, gate: Gate, tmp_path: Path
) -> None:
    """Its first limit stands: the setting of the server may have changed meanwhile."""
    script = f"echo x >> {tmp_path}/starts; {gate.wait}"
    first = await submit(client, 1, 3600, script)
    await gate.reached()

    again = await submit(client, 1, 0.01, script)

    assert again["id"] == first["id"]
    kept = json.loads((client.control(first["id"]) / "payload.json").read_bytes())
    assert kept["limit_s"] == 3600
    gate.open()
    assert (await client.stream.ended(first["id"]))["status"] == "Completed"
    assert (tmp_path / "starts").read_text() == "x\n"
    gate.close()


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "inf", "nan", ""])
async def test_a_limit_that_nobody_can_keep_is_refused(client: Agent, seconds: str) -> None:
    """400, for good; nothing is left of it."""
    answer = await client.try_submit("true", limited(1, seconds))

    assert answer.status == 400
    assert client.left() == []


@pytest.mark.parametrize("seconds", [0.0, -5.0])
async def test_so_it_is_on_the_stream(client: Agent, seconds: float) -> None:
    """Refused, and not to be sent again."""
    file = {"name": "run.sh", "size": 4, "sha256": sha256(b"true")}
    head = {"job": 3, "attempt": 1, "service": "example", "limit_s": seconds, "files": [file]}

    await client.stream.say("submit", head, b"true")
    refused = (await client.stream.kind("refused")).header

    assert (refused["job"], refused["transient"]) == (3, False)
    assert "limit" in refused["message"]


async def test_a_job_opens_as_many_files_as_the_client_was_meant_to(client: Agent) -> None:
    """Not as many as the client itself, which raises its limit: a program that closes all that it
    might have open would take minutes."""
    await client.stop()
    await client.supervisor_gone()
    await client.start(open_files=300)

    assert await client.printed("ulimit -Sn") == "300\n"
    assert await client.printed("ulimit -Hn") != "300\n"


async def test_a_soft_limit_above_the_hard_one_harms_nothing(client: Agent) -> None:
    """Jobs get what there is then."""
    await client.stop()
    await client.supervisor_gone()
    await client.start(open_files=2**40)

    assert await client.printed("echo fine") == "fine\n"


def sha256(content: bytes) -> str:
    """The digest of a file."""
    return hashlib.sha256(content).hexdigest()
