"""Uploads that cannot be used: each is refused with its reason, and nothing of it is left."""

import gzip
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_shared import uploads
from orchestrator_shared.uploads import FIELD_LIMIT, FIELDS_LIMIT
from support.limits import files_no_larger_than
from support.receiving import (
    BOUNDARY,
    FORM,
    Receiving,
    chunked,
    field_part,
    file_part,
    head,
    multipart,
    part,
    read_answer,
    receiving,
)

#: So much that it has been written to disk before what follows it is read.
BIG = file_part("big", b"x" * 2**20)


def bare(headers: str) -> bytes:
    """A part with these headers alone."""
    return f"--{BOUNDARY}\r\n{headers}\r\nx\r\n".encode()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Receiving]:
    """A server that writes every file to disk."""
    async with receiving(tmp_path, inline_limit=0) as running:
        yield running


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([field_part("f", b"\xff")], "the field 'f' is not UTF-8"),
        ([field_part("f", b"1"), field_part("f", b"1")], "the field 'f' is given twice"),
        ([field_part("f", b"x" * (FIELD_LIMIT + 1))], f"'f' has more than {FIELD_LIMIT} bytes"),
        (
            [field_part(f"f{n}", b"") for n in range(FIELDS_LIMIT + 1)],
            f"more than {FIELDS_LIMIT} fields",
        ),
        ([part(b"", b"x")], "neither a name nor a file name"),
        ([part(b'; nam="x"', b"x")], "neither a name nor a file name"),
        ([bare("")], "neither a name nor a file name"),
        ([bare("No colon\r\n")], "not well-formed multipart"),
        ([bare(": empty\r\n")], "not well-formed multipart"),
        ([bare("A: b\r\n").replace(b"\r\n", b"\n")], "cut short"),
        ([bare(f"A: {'b' * 9000}\r\n")], "not well-formed multipart"),
        ([bare("A: b\r\n" * 99)], "not well-formed multipart"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_malformed_part_is_refused(
    parts: list[bytes], problem: str, server: Receiving
) -> None:
    """Whatever is wrong with a part, the answer is 400 and says it."""
    answer = await server.post(multipart(BIG, *parts))

    assert answer.status == 400
    assert problem in answer.json["message"]
    assert answer.json["message"].endswith("Nothing of it was kept.")
    assert server.left == []


async def test_fields_up_to_their_limits_are_taken(server: Receiving) -> None:
    """As long and as many as they may be."""
    long = field_part("f0", b"x" * FIELD_LIMIT)
    others = (field_part(f"f{n}", b"v") for n in range(1, FIELDS_LIMIT))

    upload = await server.receive(long, *others)

    assert len(upload.fields) == FIELDS_LIMIT
    assert upload.fields["f0"] == "x" * FIELD_LIMIT


async def test_too_many_files_are_refused(
    server: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has to be kept in memory of each file has a limit."""
    monkeypatch.setattr(uploads, "FILES_LIMIT", 50)
    files = [BIG, *(file_part(str(n)) for n in range(50))]

    assert (await server.post(multipart(*files[:50]))).status == 200
    server.uploads[-1].discard()
    answer = await server.post(multipart(*files))

    assert answer.status == 400
    assert "more than 50 files" in answer.json["message"]
    assert server.left == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/x-www-form-urlencoded",
        f"multipart/mixed; boundary={BOUNDARY}",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\udcff",
        f"multipart/form-data; boundary={'b' * 300}",
        "",
    ],
)
async def test_another_content_type_is_refused(content_type: str, server: Receiving) -> None:
    """Without a boundary that can be used nothing can be read."""
    answer = await server.post(multipart(BIG), content_type)

    assert answer.status == 400
    assert server.left == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\r\n\r\n\r\n",
        b"\0" * 100_000,
        b"--other\r\n" + BIG,
        BIG,
        BIG + b"--",
        BIG + f"--{BOUNDARY}".encode(),
        BIG + f"--{BOUNDARY}-".encode(),
        BIG + f"--{BOUNDARY}x--\r\n".encode(),
        BIG + f"--{BOUNDARY.upper()}--\r\n".encode(),
        BIG[:-2] + f"--{BOUNDARY}--\r\n".encode(),
        BIG + f"--{BOUNDARY}\r\n".encode(),
        BIG + f"--{BOUNDARY}\r\nContent-Disposition: form-data".encode(),
        BIG[: 2**19],
    ],
    ids=range(15),
)
async def test_a_body_that_is_no_whole_multipart_is_refused(body: bytes, server: Receiving) -> None:
    """Garbage, and every kind of end before its time."""
    answer = await server.post(body)

    assert answer.status == 400
    assert server.left == []
    assert server.uploads == []


async def test_a_caller_that_hangs_up_leaves_nothing(
    server: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection ends in the middle of a file: nothing is left, and nothing is logged."""
    for length in (None, 2**30):
        server.ended.clear()
        _, writer = await server.connect()
        pieces = chunked([BIG]) if length is None else [BIG]
        writer.write(head(length))
        writer.writelines(list(pieces)[:1])
        await writer.drain()
        writer.transport.abort()
        await server.ended.wait()

    assert len(server.errors) == 2
    assert server.left == []
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_caller_that_falls_silent_is_given_up(
    server: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a byte for too long the answer is 408, and nothing is left."""
    monkeypatch.setattr(uploads, "SILENCE_LIMIT", 0.2)
    reader, writer = await server.connect()
    writer.write(head(2**30) + BIG)

    # The server lingers for the rest of the body; what it has to say comes at once.
    top = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert top.startswith(b"HTTP/1.1 408 ")
    assert server.left == []


@pytest.mark.parametrize(
    ("request_head", "body"),
    [
        (head(None), b"zz\r\nnot hexadecimal"),
        (head(None), b"5\r\ntoo long for its size\r\n"),
        (head(1000, FORM, "Content-Encoding: gzip"), b"not gzip" * 125),
        (
            head(1000, FORM, "Content-Encoding: gzip"),
            gzip.compress(multipart(BIG))[:500] + b"?" * 500,
        ),
    ],
    ids=["chunk size", "chunk end", "gzip", "gzip cut"],
)
async def test_malformed_http_is_refused(
    request_head: bytes, body: bytes, server: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """What breaks below the multipart is the caller's fault as well."""
    answer = await server.send(request_head, body)

    assert answer.status == 400
    assert server.left == []
    assert not [record for record in caplog.records if record.name.startswith("orchestrator")]


async def test_a_full_disk_is_told_and_leaves_nothing(server: Receiving) -> None:
    """What cannot be written is 507; the next upload is taken again."""
    with files_no_larger_than(2**20):
        answer = await server.post(multipart(file_part("big", b"x" * (2**20 + 1))))

    assert answer.status == 507
    assert server.left == []
    assert (await server.post(multipart(BIG))).status == 200


async def test_a_folder_that_cannot_be_made_is_an_error_inside(
    server: Receiving, tmp_path: Path
) -> None:
    """Where the caller can do nothing about it the answer is 500."""
    (tmp_path / "uploads").write_bytes(b"in the way")

    answer = await server.post(multipart(BIG))

    assert answer.status == 500


@pytest.mark.parametrize("length", [len(multipart(BIG)), None])
async def test_a_caller_that_waits_for_leave_gets_it(length: int | None, server: Receiving) -> None:
    """`Expect: 100-continue`, as curl sends it: 100 first, then the answer, also a refusal."""
    for body, status in ((multipart(BIG), 200), (multipart(BIG, BIG), 400)):
        request = head(len(body) if length else None, FORM, "Expect: 100-continue")
        reader, writer = await server.connect()
        writer.write(request)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.writelines([body] if length else chunked([body]))

        assert (await read_answer(reader)).status == status
        writer.close()
