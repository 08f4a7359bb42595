"""Parts of a stored zip (RFC 9110, 14)."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from orchestrator_shared.sealed import Sealed, answer_sealed
from support.answering import answering
from support.portal import Portal

SIZE = 1_300_000
CONTENT = os.urandom(SIZE)
DIGEST = "ab" * 32
ETAG = f'"{DIGEST}"'


@pytest.fixture(params=["file", "bytes"])
async def portal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Portal]:
    """A caller of a server that has the zip in a file, and of one that has it in memory."""
    content: Path | bytes = CONTENT
    if request.param == "file":
        content = tmp_path / "zip"
        content.write_bytes(CONTENT)

    async def handler(own: web.Request) -> web.StreamResponse:
        return await answer_sealed(own, Sealed(content, SIZE, DIGEST), {"X-Own": "kept"})

    async with answering(handler) as portal:
        yield portal


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-1299999", 100, SIZE - 1),
        ("bytes=7-", 7, SIZE - 1),
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=1299999-", SIZE - 1, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-700000", SIZE - 700_000, SIZE - 1),
        ("bytes=-1300000", 0, SIZE - 1),
        # What goes beyond the end is clipped.
        ("bytes=-99999999", 0, SIZE - 1),
        ("bytes=1299990-99999999", SIZE - 10, SIZE - 1),
        ("bytes=5-9999999999999999999", 5, SIZE - 1),
        ("BYTES=0-1", 0, 1),
        (" bytes=0-1 ", 0, 1),
    ],
)
async def test_a_range_is_answered_with_just_that(
    asked: str, first: int, last: int, portal: Portal
) -> None:
    """206, its place in the whole, and the tag and digest of the whole."""
    answer = await portal.get("/", headers={"Range": asked})

    assert answer.status == 206
    assert answer.body == CONTENT[first : last + 1]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["Content-Length"] == str(last + 1 - first)
    assert answer.headers["ETag"] == ETAG
    assert answer.headers["Repr-Digest"].startswith("sha-256=:")
    assert answer.headers["X-Own"] == "kept"


@pytest.mark.parametrize("asked", ["1300000-", "1300000-1300001", "9999999-", "-0"])
async def test_a_range_behind_the_end_is_refused(asked: str, portal: Portal) -> None:
    """416, with the size, so that the caller can ask better."""
    answer = await portal.get("/", headers={"Range": f"bytes={asked}"})

    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    assert set(answer.json) == {"id", "status", "message"}
    assert "behind the end" in answer.json["message"]


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5",
        "bytes=5-3",
        "bytes=0-1,3-4",
        "bytes=0-1, 3-",
        "bytes=--1",
        "bytes=1 2-30",
        "bytes=0-1;",
        "lines=0-1",
        "0-1",
        "",
        "bytes=\u0663-",
        f"bytes={'9' * 5000}-",
        f"bytes=0-{'9' * 5000}",
    ],
)
async def test_a_range_that_is_not_understood_asks_for_the_whole(
    asked: str, portal: Portal
) -> None:
    """As if it had not been there: also more than one at once."""
    answer = await portal.get("/", headers={"Range": asked})

    assert (answer.status, answer.body) == (200, CONTENT)
    assert "Content-Range" not in answer.headers


async def test_the_rest_of_the_same_bytes_is_answered(portal: Portal) -> None:
    """If-Range with the tag."""
    answer = await portal.get("/", headers={"Range": "bytes=1000-", "If-Range": ETAG})

    assert (answer.status, answer.body) == (206, CONTENT[1000:])


@pytest.mark.parametrize(
    "condition",
    [f'"{"cd" * 32}"', f"W/{ETAG}", DIGEST, "Wed, 21 Oct 2015 07:28:00 GMT", "", f"{ETAG}, {ETAG}"],
)
@pytest.mark.parametrize("asked", ["bytes=1000-", f"bytes={SIZE}-"])
async def test_the_rest_of_other_bytes_is_the_whole(
    asked: str, condition: str, portal: Portal
) -> None:
    """If-Range with another tag, a weak one or a date: nothing is put together that differs."""
    answer = await portal.get("/", headers={"Range": asked, "If-Range": condition})

    assert (answer.status, answer.body) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=0-1", f"bytes={SIZE}-"])
async def test_head_has_no_ranges(asked: str, portal: Portal) -> None:
    """RFC 9110, 14.2: they are for GET alone."""
    answer = await portal.request("HEAD", "/", headers={"Range": asked})

    assert answer.status == 200
    assert answer.headers["Content-Length"] == str(SIZE)


async def test_a_download_in_parts_is_the_whole(portal: Portal) -> None:
    """Of any size, one after the other."""
    step = 300_007
    parts = [
        (await portal.get("/", headers={"Range": f"bytes={start}-{start + step - 1}"})).body
        for start in range(0, SIZE, step)
    ]

    assert b"".join(parts) == CONTENT
