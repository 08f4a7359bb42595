"""POST /submit: what is not taken, why, and that nothing of it is left."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator_client.keys import STANDING
from orchestrator_shared.protocol import (
    H_ATTEMPT,
    H_JOB,
    H_PROTOCOL,
    H_SERVER,
    INLINE_LIMIT,
)
from support.agent import Agent, agent, claim, form
from support.errors import check_error
from support.limits import files_no_larger_than

LARGE = {"run.sh": "true", "data": b"x" * (INLINE_LIMIT + 1)}
SMALL = {"run.sh": "true"}


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


def multipart(*parts: str, boundary: str = "b") -> dict[str, Any]:
    """A request whose body is made of these parts, as they are."""
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    return {
        "data": body.encode(),
        "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    }


def part(name: str, content: str = "true") -> str:
    """A part with this file name."""
    return f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n{content}'


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (multipart(), "no file"),
        (multipart('Content-Disposition: form-data; name="user_id"\r\n\r\n1'), "no file"),
        (multipart(part("")), "1 to 255 bytes"),
        (multipart(part("..")), "cannot be named '..'"),
        (multipart(part(".orchestrator")), "cannot be named"),
        (multipart(part("a\tb")), "control characters"),
        (multipart(part("x" * 256)), "has 256"),
        (multipart(part("a"), part("a")), "two files"),
        (multipart(part("a"), part("x/a")), "two files"),
        ({"data": b"true"}, "not multipart"),
        ({"json": {"run.sh": "true"}}, "not multipart"),
        ({"data": b"--b\r\n", "headers": multipart()["headers"]}, "cut short"),
    ],
)
async def test_files_that_cannot_be_used_are_refused(
    client: Agent, request_: dict[str, Any], says: str
) -> None:
    """400, with what is wrong; nothing is left."""
    answer = await client.portal.post("/submit", **request_)

    check_error(answer, 400, says)
    assert client.left() == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({H_JOB: None}, "go together"),
        ({H_ATTEMPT: None}, "go together"),
        ({H_SERVER: None}, "go together"),
        ({H_SERVER: ""}, "go together"),
        ({H_JOB: "one"}, H_JOB),
        ({H_JOB: "-1"}, H_JOB),
        ({H_JOB: "1.0"}, H_JOB),
        ({H_JOB: "²"}, H_JOB),
        ({H_JOB: str(2**63)}, H_JOB),
        ({H_ATTEMPT: "first"}, H_ATTEMPT),
    ],
)
async def test_headers_that_cannot_be_used_are_refused(
    client: Agent, changes: Mapping[str, str | None], says: str
) -> None:
    """400: half a claim, or numbers that are none."""
    headers = {**claim(1), **changes}
    given = {name: value for name, value in headers.items() if value is not None}

    answer = await client.try_submit(SMALL, given)

    check_error(answer, 400, says)
    assert client.left() == []


@pytest.mark.parametrize("protocol", ["2", "one"])
async def test_another_protocol_is_refused(client: Agent, protocol: str) -> None:
    """426: the job itself may be fine, and is not to fail for it."""
    answer = await client.try_submit(SMALL, {**claim(1), H_PROTOCOL: protocol})

    check_error(answer, 426, f"protocol {protocol}")
    assert client.left() == []


async def test_an_older_attempt_is_refused(client: Agent) -> None:
    """409, while the newer one is there and after it was dropped."""
    newer = await client.run("true", job=1, attempt=3)

    held = await client.try_submit(SMALL, claim(1, 2))
    await client.stream.acknowledge(1, 3)
    await client.stream.state(newer["id"], "Cleaned")
    dropped = await client.try_submit(SMALL, claim(1, 2))

    check_error(held, 409, "older than attempt 3")
    check_error(dropped, 409, "older than attempt 3")
    assert [name for name in client.left() if str(newer["id"]) not in name] == []


@pytest.mark.parametrize("files", [SMALL, LARGE], ids=["small", "large"])
async def test_below_min_free_disk_nothing_is_taken(
    client: Agent, files: dict[str, str | bytes]
) -> None:
    """507, and nothing is left; on the stream the refusal says that it is for want of disk."""
    await client.restart(min_free_disk=2**60)

    answer = await client.try_submit(files, claim(1))
    await client.stream.submit(2, SMALL)
    refused = (await client.stream.kind("refused")).header

    check_error(answer, 507, "MIN_FREE_DISK")
    assert (refused["job"], refused["transient"], refused["disk"]) == (2, True, True)
    assert client.left() == []


@pytest.mark.parametrize("files", [SMALL, LARGE], ids=["small", "large"])
async def test_a_full_disk_refuses_and_leaves_nothing(
    client: Agent, files: dict[str, str | bytes]
) -> None:
    """507; once there is room the same attempt is taken."""
    with files_no_larger_than(1):
        answer = await client.try_submit(files, claim(1))
    after = client.left()
    again = await client.try_submit(files, claim(1))

    check_error(answer, 507, "room")
    assert after == []
    assert again.status == 200


async def test_a_client_that_stops_takes_nothing(client: Agent) -> None:
    """503: the server keeps the job."""
    client.app[STANDING].leave()

    answer = await client.try_submit(SMALL, claim(1))
    await client.stream.submit(2, SMALL)
    refused = (await client.stream.kind("refused")).header

    check_error(answer, 503, "stops")
    assert (refused["job"], refused["transient"], refused["disk"]) == (2, True, False)
    assert client.left() == []


async def test_a_submit_that_breaks_off_leaves_nothing(
    client: Agent, session: aiohttp.ClientSession
) -> None:
    """The server sends it again: the files that had come are gone, and the attempt is free."""
    came = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield f"--b\r\n{part('run.sh')}\r\n--b\r\n{part('data', 'x' * 2_000_000)}".encode()
        came.set()
        await asyncio.Event().wait()

    headers = {**claim(1), **multipart()["headers"]}
    request = asyncio.create_task(
        session.post(client.base + "/submit", data=half(), headers=headers)
    )
    await came.wait()
    while not any(name.startswith("tmp/upload") for name in client.left()):
        await client.portal.get("/live")
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)

    while client.left():
        await client.portal.get("/live")
    assert (await client.try_submit(SMALL, claim(1))).status == 200


async def test_after_a_refusal_the_next_is_taken(client: Agent) -> None:
    """A connection that brought something unusable goes on to serve."""
    async with client.session.post(
        client.base + "/submit", data=form({".orchestrator": ""})
    ) as bad:
        assert bad.status == 400

    payload = await client.run("true")

    assert payload["status"] == "Completed"
