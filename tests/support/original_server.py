"""A server of the original, as its requests to a client have it, and what it makes of answers."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp

from orchestrator_client.config import LegacyWire
from support.agent import Agent, agent
from support.gate import Gate
from support.portal import Answer
from support.recorded import Exchange, play

VERSIONS: Final = ["v1", "v2"]
#: The answer of a client of version 2 to what it does not do.
NOTHING: Final[dict[str, Any]] = {
    "id": 0, "input": {}, "status": "Unknown", "loc": "", "pid": 0, "killed": False,
}  # fmt: skip
#: Between the parts of a submit.
_BOUNDARY: Final = "9d3acfc7450e838e-f299e5c525a76cbf-d9d04ac35d13b985-01e2ad86967221e6"


@contextlib.asynccontextmanager
async def client_of(
    tmp_path: Path, session: aiohttp.ClientSession, version: str, **changes: Any
) -> AsyncIterator[Agent]:
    """A client for servers of this version. A test may stop it, and start it again."""
    wire = LegacyWire(version)
    async with agent(tmp_path / "client", session, legacy_wire=wire, **changes) as own:
        yield own


@contextlib.asynccontextmanager
async def taken_slot(tmp_path: Path, client: Agent) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The one slot of a client is taken, until what is given is called."""
    with contextlib.closing(Gate(tmp_path)) as gate:
        await client.submit(gate.wait)
        await gate.reached()

        async def free() -> None:
            gate.open()

        try:
            yield free
        finally:
            gate.open()


def submit_of(files: dict[str, str]) -> Exchange:
    """A submit; the names are written as they are given."""
    parts = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="x"; filename="{name}"\r\n\r\n'
        f"{content}\r\n"
        for name, content in files.items()
    )
    body = f"{parts}--{_BOUNDARY}--\r\n".encode()
    headers = (
        f"content-type: multipart/form-data; boundary={_BOUNDARY}",
        f"content-length: {len(body)}",
        "accept: */*",
        "host: 127.0.0.1:9000",
    )
    return Exchange("server-client", "POST /submit HTTP/1.1", headers, body, None)


async def submit(client: Agent, files: dict[str, str] | str) -> int:
    """Hand over a job that is taken; a text is its run.sh. Gives the payload's id."""
    named = {"run.sh": files} if isinstance(files, str) else files
    answer = await play(client.base, submit_of(named))
    assert answer.status == 200, answer
    id: int = answer.json["id"]
    return id


async def ask(client: Agent, id: int) -> Answer:
    """GET /retrieve/<id>."""
    headers = ("accept: */*", "host: 127.0.0.1:9000")
    start = f"GET /retrieve/{id} HTTP/1.1"
    return await play(client.base, Exchange("server-client", start, headers, b"", None))


async def ended(client: Agent, id: int) -> Answer:
    """Ask, again and again, until it is told of an end."""
    while not_done(answer := await ask(client, id)):
        pass
    return answer


def not_done(answer: Answer) -> bool:
    """Whether an answer to /retrieve has it ask again."""
    return answer.status == 202 or (kind(answer) == "json" and answer.json["status"] == "Running")


def kind(answer: Answer) -> str:
    """What the body is."""
    if not answer.body:
        return ""
    return answer.headers["Content-Type"].split(";")[0].rpartition("/")[2]


def packed(answer: Answer) -> dict[str, bytes]:
    """The job's own files in a result. The original packs its result into itself, and doubles a
    backslash in a name."""
    with answer.zip as result:
        assert result.testzip() is None
        return {
            name.replace("\\\\", "\\"): result.read(name)
            for name in result.namelist()
            if name != "output.zip" and not name.startswith(".orchestrator/")
        }


def is_empty(status: int) -> Callable[[Answer], None]:
    """What looks for an answer of this status without a body."""

    def check(answer: Answer) -> None:
        assert (answer.status, answer.body) == (status, b"")

    return check
