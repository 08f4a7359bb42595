"""POST /upload: what is refused, how that is answered, and that nothing of it is left."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from support.errors import check_error
from support.lonely import Lonely, lonely_server
from support.portal import Portal

RUN = {"run.sh": "true"}
#: Too many bytes to be kept in memory, and enough to be written to disk while they arrive.
BIG = b"x" * 900_000


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server whose client is away."""
    async with lonely_server(tmp_path) as own:
        yield own


def multipart(*parts: bytes) -> dict[str, Any]:
    """A body as it is, whatever its parts: a disposition and content each."""
    body = b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return {
        "data": body + b"--b--\r\n",
        "headers": {"Content-Type": "multipart/form-data; boundary=b"},
    }


FILE = b'name="file"; filename="run.sh"\r\n\r\ntrue'
USER = b'name="user_id"\r\n\r\n1'
SERVICE = b'name="service"\r\n\r\nexample'


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"user_id": None}, "the field 'user_id' is missing"),
        ({"service": None}, "the field 'service' is missing"),
        ({"user_id": ""}, "user_id is a number from 0 to 9223372036854775807, not ''"),
        ({"user_id": "abc"}, "not 'abc'"),
        ({"user_id": "-1"}, "not '-1'"),
        ({"user_id": "1.0"}, "not '1.0'"),
        ({"user_id": "1_0"}, "not '1_0'"),
        ({"user_id": "0x1"}, "not '0x1'"),
        ({"user_id": "１"}, "not '１'"),  # noqa: RUF001 - a digit of another script
        ({"user_id": 2**63}, "not '9223372036854775808'"),
        ({"user_id": "1" * 5000}, "user_id is a number from 0 to"),
        ({"service": ""}, "there is no service '' here (example)"),
        ({"service": "exampl"}, "there is no service 'exampl' here (example)"),
        ({"ref": "x" * 201}, "ref has 201 characters, the limit is 200"),
        ({"headers": {"Idempotency-Key": ""}}, "Idempotency-Key has 1 to 255"),
        ({"headers": {"Idempotency-Key": "k" * 256}}, "Idempotency-Key has 1 to 255"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_field_that_cannot_be_used_is_named(
    lonely: Lonely, fields: dict[str, Any], says: str
) -> None:
    """400, a message that says which field and why, and no trace of the job."""
    answer = await lonely.portal.try_upload(RUN, **fields)

    check_error(answer, 400, says)
    assert await lonely.left_nothing()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"run.sh": "true", "a/run.sh": "true"}, "two files have the name 'run.sh'"),
        ({"": "true"}, "a file name has 1 to 255 bytes"),
        ({"folder/": "true"}, "a file name has 1 to 255 bytes"),
        ({"x" * 256: "true"}, "a file name has 1 to 255 bytes"),
        ({"ü" * 128: "true"}, "a file name has 1 to 255 bytes"),
        ({".": "true"}, "a file cannot be named '.'"),
        ({"a/..": "true"}, "a file cannot be named '..'"),
        ({".orchestrator": "true"}, "a file cannot be named '.orchestrator'"),
        ({"a%0Ab": "true"}, "has control characters"),
        ({"tab\there": "true"}, "has control characters"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("first", [{}, {"big.bin": BIG}], ids=["small", "large"])
async def test_a_file_that_cannot_be_used_is_named(
    lonely: Lonely, first: dict[str, bytes], files: dict[str, str], says: str
) -> None:
    """400, and what had arrived before it is gone from the disk too."""
    check_error(await lonely.portal.try_upload({**first, **files}), 400, says)
    assert await lonely.left_nothing()


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"data": b"true", "headers": {"Content-Type": "text/x-shellscript"}}, "not multipart"),
        ({"json": {"user_id": 1, "service": "example"}}, "not multipart"),
        ({"data": b"", "headers": {"Content-Type": "multipart/form-data"}}, "with a boundary"),
        ({"data": b"", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
         "cut short"),
        ({**multipart(FILE, USER, SERVICE), "headers": {
            "Content-Type": "multipart/form-data; boundary=other"}}, "not well-formed multipart"),
        (multipart(FILE, USER, USER, SERVICE), "the field 'user_id' is given twice"),
        (multipart(FILE, USER, SERVICE, b'name="ref"\r\n\r\n\xff'), "'ref' is not UTF-8"),
        (multipart(USER, SERVICE), "it has no file"),
        (multipart(b'name="file"\r\n\r\ntrue', USER, SERVICE), "it has no file"),
        (multipart(b'filename="a\xff"\r\n\r\ntrue', USER, SERVICE), "is not UTF-8"),
        (multipart(FILE, b'size="1"\r\n\r\n1'), "neither a name nor a file name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_a_body_that_cannot_be_read_is_refused(
    lonely: Lonely, request_: dict[str, Any], says: str
) -> None:
    """400, and a message that says what is wrong with it."""
    check_error(await lonely.portal.post("/upload", **request_), 400, says)
    assert await lonely.left_nothing()


async def test_a_key_that_is_no_text_is_refused(lonely: Lonely) -> None:
    """Bytes that are not UTF-8 in the header are the caller's mistake, not the server's."""
    body = multipart(FILE, USER, SERVICE)["data"]
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(lonely.portal.base).port)
    writer.write(
        b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: k\xff\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Idempotency-Key has 1 to 255 printable characters" in answer
    assert await lonely.left_nothing()


async def test_an_upload_that_is_cut_off_leaves_nothing(
    lonely: Lonely, caplog: pytest.LogCaptureFixture
) -> None:
    """A portal that dies on the way is no event here, and its bytes are removed."""
    _, writer = await asyncio.open_connection("127.0.0.1", URL(lonely.portal.base).port)
    writer.write(
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; filename="run.sh"\r\n\r\n' + BIG
    )
    while not lonely.left():
        await lonely.portal.get("/live")
    writer.transport.abort()
    while lonely.left():
        await lonely.portal.get("/live")

    assert await lonely.left_nothing()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("limit", [0, 1000, 800_000])
async def test_files_over_the_limit_in_sum_are_refused(tmp_path: Path, limit: int) -> None:
    """413 from one byte too many on, small or large; the limit itself is still taken."""
    half = b"x" * (limit // 2)
    async with lonely_server(tmp_path, max_upload_size=limit) as lonely:
        answer = await lonely.portal.try_upload({"a": half, "b": half + b"x"})

        check_error(answer, 413, f"larger than {limit} bytes in sum")
        assert "MAX_UPLOAD_SIZE" in answer.json["message"]
        assert await lonely.left_nothing()
        assert (await lonely.portal.try_upload({"a": half, "b": half})).status == 201


@pytest.mark.parametrize("content", [b"true", BIG], ids=["small", "large"])
async def test_an_upload_is_refused_where_the_disk_is_full(tmp_path: Path, content: bytes) -> None:
    """507 while less than MIN_FREE_DISK is free, and nothing is left."""
    async with lonely_server(tmp_path, min_free_disk=2**62) as lonely:
        answer = await lonely.portal.try_upload({"run.sh": content})

        check_error(answer, 507, f"MIN_FREE_DISK is {2**62}")
        assert await lonely.left_nothing()


async def test_without_a_service_every_upload_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that has none starts, warns, and says so to whoever comes."""
    async with lonely_server(tmp_path, services={}) as lonely:
        answer = await lonely.portal.try_upload(RUN)

    check_error(answer, 400, "there is no service 'example' here (none is set up)")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("no service is set up" in warning for warning in warnings)


async def test_what_follows_a_refusal_is_taken(lonely: Lonely) -> None:
    """A refused upload harms no later one on the same connection pool."""
    portal: Portal = lonely.portal
    for _ in range(3):
        check_error(await portal.try_upload({"run.sh": BIG}, service="none"), 400)

    assert await portal.upload({"run.sh": BIG}) == 1
