"""GET /stream: a server follows its payloads over one connection, and hands over small jobs."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator_client import streams
from orchestrator_client.keys import PAYLOADS, STREAMS
from orchestrator_shared import __version__
from orchestrator_shared.protocol import H_PROTOCOL, H_SERVER, INLINE_LIMIT
from support.agent import Agent, agent
from support.errors import check_error
from support.follower import Follower, Frame
from support.gate import Gate

#: What does not shrink.
RANDOM = "head -c {} /dev/urandom > out"


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with two slots."""
    async with agent(tmp_path / "client", session) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


def states(follower: Follower) -> list[dict[str, Any]]:
    """The payloads that it was told of, in order."""
    return [frame.payload for frame in follower.frames if frame.kind == "state"]


async def test_it_begins_with_who_the_client_is(client: Agent) -> None:
    """Protocol, version, instance, start, slots and grace; then how busy it is; then the list."""
    await client.stream.kind("listed")

    hello = client.stream.frames[0]
    assert hello.kind == "hello"
    assert hello.header["protocol"] == 1
    assert hello.header["version"] == __version__
    assert hello.header["instance"] == (client.data_path / "instance").read_text().strip()
    assert len(hello.header["start"]) == 16
    assert (hello.header["slots"], hello.header["kill_grace"]) == (2, 1.0)
    assert [frame.kind for frame in client.stream.frames] == ["hello", "heartbeat", "listed"]
    beat = client.stream.frames[1].header
    assert beat["others"] == 0
    assert 0 <= beat["cpu_load"] <= 100


async def test_it_lists_every_payload_of_its_server(client: Agent, gate: Gate) -> None:
    """In whatever state, oldest first; nothing of other servers, and nothing that was dropped."""
    ended = await client.run("true", job=1)
    failed = await client.run("exit 1", job=2)
    await client.run("true", job=3)
    await client.stream.acknowledge(3)
    await client.submit("true", job=1, server="another")
    await client.try_submit("true", {})
    running = await client.submit(gate.wait, job=4)
    await gate.reached()
    await client.submit(gate.wait, job=5)
    await gate.reached()
    waiting = await client.submit("true", job=6)

    async with client.follow() as second:
        await second.kind("listed")

    listed = states(second)
    assert [payload["job"] for payload in listed] == [1, 2, 4, 5, 6]
    assert listed[0] == await client.stream.ended(ended["id"])
    assert listed[1] == await client.stream.ended(failed["id"])
    assert (listed[2]["id"], listed[2]["status"]) == (running["id"], "Running")
    assert listed[2]["pid"] > 0
    assert (listed[4]["id"], listed[4]["status"]) == (waiting["id"], "Prepared")
    gate.close()


async def test_every_change_is_told_with_a_rising_number(client: Agent, gate: Gate) -> None:
    """The whole state each time, whichever way the payload came."""
    payload = await client.submit(gate.wait, job=1)
    await gate.reached()
    await client.stream.state(payload["id"], "Running")
    gate.open()
    await client.stream.ended(payload["id"])
    await client.stream.submit(2, "true")
    second = await client.stream.of_attempt(2, 1)
    await client.stream.ended(second["id"])

    told = [frame.header["seq"] for frame in client.stream.frames if frame.kind == "state"]
    assert told == list(range(1, len(told) + 1))
    first = [state["status"] for state in states(client.stream) if state["job"] == 1]
    assert first[-1] == "Completed"
    assert set(first) <= {"Prepared", "Running", "Completed"}
    assert first == sorted(first, key=["Prepared", "Running", "Completed"].index)
    fields = {"id", "status", "loc", "pid", "killed", "job", "attempt", "exit_code", "result"}
    assert all(fields <= set(state) for state in states(client.stream))
    gate.close()


async def test_a_heartbeat_comes_all_the_time(
    client: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing happens, and where so much happens for others that it never rests."""
    monkeypatch.setattr(streams, "HEARTBEAT_INTERVAL", 0.02)
    others = await client.submit("true", job=1)
    await client.stream.ended(others["id"])
    payload = client.app[PAYLOADS].get(others["id"])

    def enough(_: Frame) -> bool:
        return sum(frame.kind == "heartbeat" for frame in follower.frames) >= 5

    async def disturb() -> None:
        while True:
            client.app[STREAMS].publish(payload)
            await asyncio.sleep(0)

    async with client.follow("idle") as follower:
        await follower.until(enough)
    disturbing = asyncio.create_task(disturb())
    async with client.follow("busy") as follower:
        await follower.until(enough)
    disturbing.cancel()


async def test_a_server_is_told_how_busy_others_keep_the_client(client: Agent, gate: Gate) -> None:
    """At once, when it changes: what waits for a slot goes elsewhere."""

    def others(count: int) -> Any:
        return lambda frame: frame.kind == "heartbeat" and frame.header["others"] == count

    await client.submit(gate.wait, server="another")
    await client.stream.until(others(1))
    await client.try_submit(gate.wait, {})
    await client.stream.until(others(2))
    await client.submit("true", job=1)
    client.stream.frames.clear()
    gate.open(2)
    await client.stream.until(others(0))
    gate.close()


async def test_a_job_is_handed_over_on_the_stream(client: Agent) -> None:
    """Its payload is told of, runs, and its small result comes along."""
    await client.stream.submit(7, {"run.sh": "cat in.txt > out.txt", "in.txt": b"a\nb\x00"})
    payload = await client.stream.of_attempt(7, 1)

    frame = await client.stream.state(payload["id"], "Completed")

    assert zipfile.ZipFile(io.BytesIO(frame.body)).read("out.txt") == b"a\nb\x00"


async def test_the_same_attempt_again_on_the_stream_runs_once(
    client: Agent, tmp_path: Path
) -> None:
    """Two at once, and one after its end: the state comes back each time."""
    script = f"echo started >> {tmp_path}/starts"
    for _ in range(2):
        await client.stream.submit(7, script)
    payload = await client.stream.of_attempt(7, 1)
    await client.stream.ended(payload["id"])
    client.stream.frames.clear()
    await client.stream.submit(7, script)

    again = await client.stream.of_attempt(7, 1)

    assert (again["id"], again["status"]) == (payload["id"], "Completed")
    await client.run("true", job=8)
    assert (tmp_path / "starts").read_text() == "started\n"


def header(*files: tuple[str, int], job: int = 7, attempt: int = 1) -> dict[str, Any]:
    """The head of a job on the stream."""
    named = [{"name": name, "size": size, "sha256": "0" * 64} for name, size in files]
    return {"job": job, "attempt": attempt, "service": "example", "files": named}


@pytest.mark.parametrize(
    ("head", "body", "says"),
    [
        (header(), b"", "no file"),
        (header(("run.sh", 5)), b"true", "sizes"),
        (header(("run.sh", 3)), b"true", "sizes"),
        (header(("a", 1), ("a", 1)), b"xy", "same name"),
        (header(("../run.sh", 4)), b"true", "cannot be named"),
        (header((".orchestrator", 4)), b"true", "cannot be named"),
        (header(("", 4)), b"true", "1 to 255"),
        (header(("run.sh", 4), job=2**63), b"true", "job"),
        (header(("run.sh", 4), job=-1), b"true", "job"),
        (header(("run.sh", 4), attempt=2**63), b"true", "attempt"),
    ],
)
async def test_a_job_that_cannot_be_used_is_refused_for_good(
    client: Agent, head: dict[str, Any], body: bytes, says: str
) -> None:
    """It is not to be sent again, and nothing of it is left."""
    await client.stream.say("submit", head, body)

    refused = (await client.stream.kind("refused")).header

    assert (refused["job"], refused["attempt"]) == (head["job"], head["attempt"])
    assert (refused["transient"], refused["disk"]) == (False, False)
    assert says in refused["message"]
    assert client.left() == []


async def test_an_older_attempt_on_the_stream_is_refused_for_good(client: Agent) -> None:
    """The newer one has been taken."""
    await client.run("true", job=7, attempt=2)

    await client.stream.submit(7, "true")

    refused = (await client.stream.kind("refused")).header
    assert (refused["job"], refused["attempt"], refused["transient"]) == (7, 1, False)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\n", b"{}", b"nonsense\n", b'{"type": "submit"}\n', b'{"type": "unheard of"}\n',
     b'{"type": "acknowledge", "job": "x", "attempt": 1}\n', b"\xff\xfe\n"],
)  # fmt: skip
async def test_a_message_that_cannot_be_read_ends_its_stream(client: Agent, frame: bytes) -> None:
    """What it was about is lost; on the next stream everything is told again."""
    await client.stream.submit(1, "true")
    await client.stream.of_attempt(1, 1)
    await client.stream.send(frame)
    await client.stream.end()

    async with client.follow() as again:
        assert (await again.of_attempt(1, 1))["job"] == 1


@pytest.mark.parametrize("job", [1, 2**63 - 1])
async def test_what_is_not_there_need_not_be_dropped(client: Agent, job: int) -> None:
    """An acknowledgement that comes too late, or of something else, changes nothing."""
    await client.stream.acknowledge(job)
    await client.stream.submit(1, "true")
    payload = await client.stream.of_attempt(1, 1)
    assert (await client.stream.ended(payload["id"]))["status"] == "Completed"


@pytest.mark.parametrize(("size", "along"), [(100, True), (INLINE_LIMIT + 1, False)])
async def test_only_a_small_result_comes_along(client: Agent, size: int, along: bool) -> None:
    """Up to 64 KiB, the very bytes that /result gives; a larger one is fetched by itself."""
    payload = await client.submit(RANDOM.format(size))
    frame = await client.stream.state(payload["id"], "Completed")

    fetched = (await client.portal.get(f"/result/{payload['id']}")).body

    told = frame.payload["result"]
    assert told == {"size": len(fetched), "sha256": hashlib.sha256(fetched).hexdigest()}
    assert frame.body == (fetched if along else b"")


async def test_a_second_stream_takes_the_place_of_the_first(client: Agent, gate: Gate) -> None:
    """Of the same server; the first is closed, and the second has the whole list."""
    payload = await client.submit(gate.wait)
    await gate.reached()
    async with client.follow("another") as another, client.follow() as second:
        await client.stream.end()
        await second.kind("listed")
        assert [state["id"] for state in states(second)] == [payload["id"]]
        gate.open()
        await second.ended(payload["id"])
        assert not another.closed
    gate.close()


async def test_of_many_streams_the_last_stays(client: Agent) -> None:
    """However fast they come one after the other: one of them is told of what happens."""
    async with client.follow("s") as a, client.follow("s") as b, client.follow("s") as c:
        followers = [a, b, c]
        await asyncio.gather(*(follower.end() for follower in followers[:2]))
        payload = await client.submit("true", server="s")
        await c.ended(payload["id"])


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({}, 400, H_SERVER),
        ({H_SERVER: ""}, 400, H_SERVER),
        ({H_SERVER: "s", H_PROTOCOL: "7"}, 426, "protocol 7"),
    ],
)
async def test_a_stream_says_whose_it_is(
    client: Agent, headers: dict[str, str], status: int, says: str
) -> None:
    """400 without a server, 426 for another protocol."""
    check_error(await client.portal.get("/stream", headers=headers), status, says)


async def test_a_client_that_stops_closes_its_streams(client: Agent) -> None:
    """The server knows at once, not after a time of silence."""
    follower = client.stream

    await client.stop()

    assert follower.closed
