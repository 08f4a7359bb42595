"""POST /submit: a job becomes a payload, once."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator_shared.protocol import INLINE_LIMIT
from support.agent import Agent, agent, claim
from support.gate import Gate
from support.portal import Files


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with two slots."""
    async with agent(tmp_path / "client", session) as own:
        yield own


def counting(path: Path) -> str:
    """A run.sh that leaves a line for each of its starts."""
    return f'echo "$ORCH_JOB_ID $ORCH_ATTEMPT" >> {path}'


async def test_a_submit_is_answered_with_its_payload(client: Agent) -> None:
    """The answer has the fields that it always had, in their types, and ours."""
    before = int(time.time())

    answer = await client.try_submit("true", claim(7, 2))

    assert answer.status == 200
    payload = answer.json
    assert {"id", "input", "status", "loc", "pid", "killed"} <= set(payload)
    assert type(payload["id"]) is int
    assert payload["id"] >= before
    assert payload["input"] == {}
    assert payload["status"] == "Prepared"
    assert payload["loc"] == str(client.work(payload["id"]) / "job")
    assert payload["pid"] == 0
    assert payload["killed"] is False
    assert payload["lost"] is False
    assert (payload["job"], payload["attempt"]) == (7, 2)
    assert payload["exit_code"] is None


async def test_a_submit_without_headers_is_taken(client: Agent) -> None:
    """Anybody can hand over a job with curl; each time it is a new one."""
    first = await client.try_submit("echo one > out", {})
    second = await client.try_submit("echo one > out", {})

    assert (first.status, second.status) == (200, 200)
    assert first.json["id"] != second.json["id"]
    assert first.json["job"] == 0
    for answer in (first, second):
        retrieved = await client.retrieve(answer.json["id"])
        while retrieved.status == 202:
            retrieved = await client.retrieve(answer.json["id"])
        assert retrieved.zip.read("out") == b"one\n"


async def test_the_same_attempt_again_is_the_same_payload(client: Agent, tmp_path: Path) -> None:
    """While it waits or runs and after it has ended: nothing runs twice."""
    gate = Gate(tmp_path)
    files = f"{counting(tmp_path / 'starts')}; {gate.wait}"

    first = await client.try_submit(files, claim(1))
    await gate.reached()
    running = await client.try_submit(files, claim(1))
    gate.open()
    await client.stream.ended(first.json["id"])
    ended = await client.try_submit(files, claim(1))

    assert (running.status, ended.status) == (200, 200)
    assert running.json["id"] == ended.json["id"] == first.json["id"]
    assert (running.json["status"], ended.json["status"]) == ("Running", "Completed")
    # Of a later job it is known that it ran after all that had been taken before.
    await client.run("true", job=2)
    assert (tmp_path / "starts").read_text() == "1 1\n"
    gate.close()


@pytest.mark.parametrize("size", [10, 2 * INLINE_LIMIT])
async def test_the_same_attempt_twice_at_once_is_one_payload(
    client: Agent, tmp_path: Path, size: int
) -> None:
    """Whoever asks again before the first answer gets the same one."""
    files: Files = {"run.sh": counting(tmp_path / "starts"), "data": b"x" * size}

    answers = await asyncio.gather(*(client.try_submit(files, claim(1)) for _ in range(5)))

    assert {answer.status for answer in answers} == {200}
    (id,) = {answer.json["id"] for answer in answers}
    await client.stream.ended(id)
    await client.run("true", job=2)
    assert (tmp_path / "starts").read_text() == "1 1\n"
    assert [name for name in client.left() if name.startswith("tmp/upload")] == []


async def test_another_server_may_use_the_same_numbers(client: Agent) -> None:
    """Jobs of two servers have nothing to do with each other."""
    first = await client.try_submit("true", claim(1, server="one"))
    second = await client.try_submit("true", claim(1, server="two"))

    assert (first.status, second.status) == (200, 200)
    assert first.json["id"] != second.json["id"]


@pytest.mark.parametrize(
    "size", [0, 1, INLINE_LIMIT - 4, INLINE_LIMIT - 3, INLINE_LIMIT, 5_000_000]
)
async def test_files_arrive_as_they_were_sent(client: Agent, size: int) -> None:
    """Small ones and large ones, byte by byte, under their names."""
    content = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
    files: Files = {"run.sh": "true", "a b.pdb": content, "ünïcode%": b"\x00\xff"}

    payload = await client.run(files)

    assert payload["status"] == "Completed"
    result = await client.result(payload["id"])
    assert result.read("a b.pdb") == content
    assert result.read("ünïcode%") == b"\x00\xff"
    assert result.read("run.sh") == b"true"


async def test_what_was_taken_is_on_disk(client: Agent, tmp_path: Path) -> None:
    """Before the answer: files and claim, where a `kill -9` cannot lose them."""
    gate = Gate(tmp_path)
    await client.submit(gate.wait)
    await client.submit(gate.wait)

    payload = await client.submit({"run.sh": "true", "in.txt": "hello"}, job=9, attempt=3)

    stored = json.loads((client.control(payload["id"]) / "payload.json").read_text())
    assert (stored["server"], stored["job"], stored["attempt"]) == ("a-server", 9, 3)
    assert stored["service"] == "example"
    assert (Path(payload["loc"]) / "in.txt").read_text() == "hello"
    gate.open(2)
    gate.close()


async def test_a_higher_attempt_ends_the_one_before(client: Agent, tmp_path: Path) -> None:
    """Its server has given that up: it is dead before the newer one starts."""
    await client.restart(kill_grace=0.2)
    gate = Gate(tmp_path)
    older = await client.submit(f"trap '' TERM; echo $$ > {tmp_path}/pid; {gate.wait}", job=1)
    await gate.reached()

    newer = await client.run(f"! kill -0 $(< {tmp_path}/pid)", job=1, attempt=2)

    assert newer["status"] == "Completed"
    assert (await client.stream.ended(older["id"]))["status"] == "Killed"
    gate.close()


async def test_a_higher_attempt_ends_one_that_waits(client: Agent, tmp_path: Path) -> None:
    """A Prepared one never starts."""
    gate = Gate(tmp_path)
    for _ in range(2):
        await client.submit(gate.wait, job=None)
        await gate.reached()
    older = await client.submit(f"touch {tmp_path}/started", job=100)

    newer = await client.submit("true", job=100, attempt=2)
    gate.open(2)

    assert (await client.stream.ended(older["id"]))["status"] == "Killed"
    assert (await client.stream.ended(newer["id"]))["status"] == "Completed"
    assert not (tmp_path / "started").exists()
    gate.close()


async def test_ids_rise(client: Agent) -> None:
    """Each payload has a number above all before, and no less than the Unix time."""
    before = int(time.time())

    payloads: list[dict[str, Any]] = [await client.submit("true") for _ in range(20)]

    ids = [payload["id"] for payload in payloads]
    assert ids == sorted(set(ids))
    assert ids[0] >= before
