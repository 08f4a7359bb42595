"""A stored zip as an answer: headers, conditions, and what is wrong with the file."""

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orchestrator_shared.sealed import Sealed, answer_sealed
from support.answering import answering
from support.portal import Portal
from support.receiving import read_answer

CONTENT = os.urandom(1_300_000)
DIGEST = hashlib.sha256(CONTENT)
ETAG = f'"{DIGEST.hexdigest()}"'


@contextlib.asynccontextmanager
async def serving(content: Path | bytes, size: int = len(CONTENT)) -> AsyncIterator[Portal]:
    """A server that answers with this zip."""

    async def handler(request: web.Request) -> web.StreamResponse:
        sealed = Sealed(content, size, DIGEST.hexdigest())
        return await answer_sealed(request, sealed, {"X-Job-Status": "Completed"})

    async with answering(handler) as portal:
        yield portal


@pytest.fixture(params=["file", "bytes"])
async def portal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Portal]:
    """A caller of a server that has the zip in a file, and of one that has it in memory."""
    (tmp_path / "zip").write_bytes(CONTENT)
    async with serving(tmp_path / "zip" if request.param == "file" else CONTENT) as portal:
        yield portal


async def test_the_whole_is_answered_with_all_that_is_known_of_it(portal: Portal) -> None:
    """Length, tag, digest (RFC 9530) and the caller's own headers."""
    answer = await portal.get("/")

    assert answer.status == 200
    assert answer.body == CONTENT
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["ETag"] == ETAG
    encoded = base64.b64encode(DIGEST.digest()).decode()
    assert answer.headers["Repr-Digest"] == f"sha-256=:{encoded}:"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Job-Status"] == "Completed"
    assert "Content-Range" not in answer.headers


async def test_head_is_answered_as_get_would_be(portal: Portal) -> None:
    """The same headers, and no body."""
    get, head = await portal.get("/"), await portal.request("HEAD", "/")

    assert (head.status, head.body) == (200, b"")
    differing = {"Date"}
    assert {k: v for k, v in head.headers.items() if k not in differing} == {
        k: v for k, v in get.headers.items() if k not in differing
    }


async def test_head_reads_no_file(tmp_path: Path) -> None:
    """It is answered although the file is not there."""
    async with serving(tmp_path / "missing") as portal:
        answer = await portal.request("HEAD", "/")

        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(CONTENT))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "condition", [ETAG, f"W/{ETAG}", f'"other", {ETAG}', f'"other",W/{ETAG} , "more"', "*"]
)
async def test_a_caller_that_has_it_is_told_so(condition: str, method: str, portal: Portal) -> None:
    """If-None-Match: 304, with the tag, and without a body or its length."""
    answer = await portal.request(method, "/", headers={"If-None-Match": condition})

    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["ETag"] == ETAG
    assert answer.headers["X-Job-Status"] == "Completed"
    assert answer.headers.get("Content-Length", "0") == "0"
    assert "Content-Type" not in answer.headers


async def test_conditions_in_several_lines_count_together(portal: Portal) -> None:
    """As HTTP has it for every list."""
    headers = [("If-None-Match", '"other"'), ("If-None-Match", ETAG)]

    assert (await portal.get("/", headers=headers)).status == 304


@pytest.mark.parametrize("condition", ['"other"', DIGEST.hexdigest(), "", f'"{ETAG}"'])
async def test_a_caller_that_has_another_gets_it(condition: str, portal: Portal) -> None:
    """A tag is compared as a whole, quotes included."""
    answer = await portal.get("/", headers={"If-None-Match": condition})

    assert (answer.status, answer.body) == (200, CONTENT)


async def test_what_the_caller_has_counts_before_a_range(portal: Portal) -> None:
    """RFC 9110, 13.2.2."""
    answer = await portal.get("/", headers={"If-None-Match": ETAG, "Range": "bytes=0-1"})

    assert answer.status == 304


async def test_a_connection_serves_one_answer_after_the_other(portal: Portal) -> None:
    """Whole, part, refusal, nothing: none of them leaves anything behind on it."""
    for headers, status in [
        ({}, 200),
        ({"Range": "bytes=5-9"}, 206),
        ({"Range": f"bytes={len(CONTENT)}-"}, 416),
        ({"If-None-Match": ETAG}, 304),
        ({}, 200),
    ]:
        assert (await portal.get("/", headers=headers)).status == status


async def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """And not an empty zip."""
    async with serving(tmp_path / "missing") as portal:
        answer = await portal.get("/")

        assert answer.status == 500
        assert answer.json["message"].startswith("It failed inside")


@pytest.mark.parametrize("length", [0, len(CONTENT) - 1, len(CONTENT) + 1])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-0"}])
async def test_a_file_of_another_length_is_never_served(
    headers: dict[str, str], length: int, tmp_path: Path
) -> None:
    """Neither whole nor in part: it is not what its digest was taken of."""
    (tmp_path / "zip").write_bytes((CONTENT + b"x")[:length])
    async with serving(tmp_path / "zip") as portal:
        assert (await portal.get("/", headers=headers)).status == 500


async def test_a_file_cut_short_while_it_is_sent_cuts_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller sees that it has not got everything, and nothing else follows."""
    size = 2**26
    path = tmp_path / "zip"
    path.touch()
    os.truncate(path, size)
    async with serving(path, size) as portal, portal.session.get(portal.base) as response:
        received = len(await response.content.readexactly(1000))
        os.truncate(path, 0)
        with pytest.raises(aiohttp.ClientPayloadError):
            async for chunk in response.content.iter_any():
                assert not chunk.strip(b"\0")
                received += len(chunk)

    assert received < size
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_caller_that_hangs_up_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged, and the file is closed."""
    size = 2**26
    path = tmp_path / "zip"
    path.touch()
    os.truncate(path, size)
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await answer_sealed(request, Sealed(path, size, DIGEST.hexdigest()), {})
        finally:
            ended.set()

    async with answering(handler) as portal:
        async with portal.session.get(portal.base) as response:
            await response.content.readexactly(1000)
            response.close()
        await ended.wait()

    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_http_1_0_is_answered(portal: Portal) -> None:
    """With a length, and the end of the connection behind it."""
    host, port = portal.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")

    answer = await read_answer(reader)
    writer.close()

    assert (answer.status, answer.body) == (200, CONTENT)
