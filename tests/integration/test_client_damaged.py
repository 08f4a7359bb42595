"""Files that arrive other than they were sent: noticed, not kept, taken when they come again."""

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.agent import Agent, agent, claim
from support.portal import Answer

#: Small files stay in memory until they are checked, large ones lie on the disk by then.
LARGE = b"#" * 200_000


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


def digest(content: bytes) -> str:
    """What a sender says of a file (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def submit(client: Agent, files: Mapping[str, tuple[bytes, bytes]], job: int) -> Answer:
    """Send files: of each what arrives, and what was sent."""
    with aiohttp.MultipartWriter("form-data") as writer:
        for name, (arrives, sent) in files.items():
            disposition = f'form-data; name="file"; filename="{name}"'
            head = {"Content-Disposition": disposition, "Repr-Digest": digest(sent)}
            part = aiohttp.payload.BytesPayload(arrives)
            part.headers.clear()
            part.headers.update(head)
            writer.append_payload(part)
    return await client.portal.post("/submit", data=writer, headers=claim(job))


def head(job: int, files: Mapping[str, tuple[bytes, bytes]]) -> dict[str, Any]:
    """The same in a message of the stream."""
    named = [
        {"name": name, "size": len(arrives), "sha256": hashlib.sha256(sent).hexdigest()}
        for name, (arrives, sent) in files.items()
    ]
    return {"job": job, "attempt": 1, "service": "example", "files": named}


@pytest.mark.parametrize("rest", [b"", LARGE])
async def test_a_damaged_file_is_refused_and_taken_when_it_comes_again(
    client: Agent, rest: bytes
) -> None:
    """422, which names it; nothing of the job is left, and nothing is run."""
    run_sh = (b"true\n", b"true\n")
    sent = b"data" + rest
    flipped = b"dat\x01" + rest

    refused = await submit(client, {"run.sh": run_sh, "in.txt": (flipped, sent)}, 1)
    left = client.left()
    taken = await submit(client, {"run.sh": run_sh, "in.txt": (sent, sent)}, 1)

    assert (refused.status, "'in.txt'" in refused.json["message"]) == (422, True)
    assert left == []
    assert taken.status == 200
    end = await client.stream.ended(taken.json["id"])
    assert (await client.result(end["id"])).read("in.txt") == sent


async def test_so_it_is_on_the_stream(client: Agent) -> None:
    """Refused as damaged, and to be sent again."""
    files = {"run.sh": (b"tru\x01", b"true")}

    await client.stream.say("submit", head(1, files), b"tru\x01")
    refused = (await client.stream.kind("refused")).header
    left = client.left()
    await client.stream.say("submit", head(1, {"run.sh": (b"true", b"true")}), b"true")
    payload = await client.stream.of_attempt(1, 1)

    assert (refused["damaged"], refused["transient"], refused["held"]) == (True, True, None)
    assert "'run.sh'" in refused["message"]
    assert left == []
    assert (await client.stream.ended(payload["id"]))["status"] == "Completed"


async def test_an_older_attempt_on_the_stream_is_told_which_one_is_held(client: Agent) -> None:
    """The server then knows that its own count is behind."""
    await client.run("true", job=1, attempt=4)

    await client.stream.say("submit", head(1, {"run.sh": (b"true", b"true")}), b"true")
    refused = (await client.stream.kind("refused")).header

    assert (refused["held"], refused["transient"], refused["damaged"]) == (4, False, False)
