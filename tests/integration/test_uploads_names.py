"""The names of uploaded files, as callers send them."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_shared.multipart import write_disposition
from support.receiving import FORM, Receiving, field_part, file_part, multipart, part, receiving


@pytest.fixture
async def to_disk(tmp_path: Path) -> AsyncIterator[Receiving]:
    """A server that writes every file to disk, so that its name has to be one."""
    async with receiving(tmp_path, inline_limit=0) as server:
        yield server


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'; name="file"; filename="two words.txt"', "two words.txt"),
        ('; name="file"; filename="Übergröße.pdb"'.encode(), "Übergröße.pdb"),
        (b'; name="file"; filename="a\\"b"', 'a"b'),
        (b'; name="file"; filename="a%22b"', 'a"b'),
        (b'; name="file"; filename="a;b"', "a;b"),
        (b'; name="file"; filename="-rf"', "-rf"),
        (b'; name="file"; filename="a%20b"', "a%20b"),
        (b'; name="file"; filename="%2e%2e"', "%2e%2e"),
        (b'; name="file"; filename="../../x/run.sh"', "run.sh"),
        (b'; name="file"; filename="' + b"n" * 255 + b'"', "n" * 255),
        ('; name="file"; filename="{}"'.format("ü" * 127).encode(), "ü" * 127),
        (b"; name=\"file\"; filename*=utf-8''%C3%BC%22", 'ü"'),
        (b'; name="file"; filename*=utf-8\'\'star; filename="plain"', "plain"),
        (b'; filename="unnamed"', "unnamed"),
        (b'; name="any field"; filename="x"', "x"),
    ],
)
async def test_a_file_lies_on_disk_under_its_name(
    disposition: bytes, name: str, to_disk: Receiving
) -> None:
    """The name is what the caller meant, and the file has it."""
    upload = await to_disk.receive(part(disposition, b"content"))

    assert [file.name for file in upload.files] == [name]
    assert upload.folder is not None
    assert {path.name: path.read_bytes() for path in upload.folder.iterdir()} == {name: b"content"}


@pytest.mark.parametrize(
    ("filename", "problem"),
    [
        (b"", "1 to 255 bytes"),
        (b"folder/", "1 to 255 bytes"),
        (b"n" * 256, "1 to 255 bytes"),
        ("ü".encode() * 128, "1 to 255 bytes"),
        (b".", "cannot be named"),
        (b"..", "cannot be named"),
        (b"../..", "cannot be named"),
        (b".orchestrator", "cannot be named"),
        (b"a%0Ab", "control characters"),
        (b"a%0Db", "control characters"),
        (b"a\tb", "control characters"),
        (b"a\x1bb", "control characters"),
        (b"a\xffb", "not UTF-8"),
        (b"\xc3", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
    ],
)
async def test_an_unusable_name_refuses_the_upload(
    filename: bytes, problem: str, to_disk: Receiving
) -> None:
    """It is answered 400 with the reason, and a file that came before is removed too."""
    answer = await to_disk.post(
        multipart(
            file_part("before", b"x" * 2**20),
            part(b'; name="file"; filename="' + filename + b'"', b"content"),
        )
    )

    assert answer.status == 400
    assert problem in answer.json["message"]
    assert to_disk.left == []


@pytest.mark.parametrize("second", ["same", "other/same", "./same"])
async def test_a_repeated_name_refuses_the_upload(second: str, to_disk: Receiving) -> None:
    """Two files cannot have one name, also where their paths differ."""
    answer = await to_disk.post(multipart(file_part("same", b"x" * 2**20), file_part(second, b"y")))

    assert answer.status == 400
    assert "two files have the name 'same'" in answer.json["message"]
    assert to_disk.left == []


async def test_names_that_differ_in_case_or_form_are_two_files(to_disk: Receiving) -> None:
    """Names are compared as bytes."""
    names = ["a", "A", "\u00fc", "u\u0308"]

    upload = await to_disk.receive(*(file_part(name, name.encode()) for name in names))

    assert upload.folder is not None
    assert {p.name: p.read_text() for p in upload.folder.iterdir()} == {n: n for n in names}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\\", "%22", "ü %0D", "a;b"])
async def test_a_name_goes_from_server_to_client_unchanged(name: str, to_disk: Receiving) -> None:
    """What one of us writes the other reads."""
    disposition = write_disposition(name).removeprefix("form-data").encode()

    upload = await to_disk.receive(part(disposition, b"content"))

    assert [file.name for file in upload.files] == [name]


@pytest.mark.parametrize("content_type", ["application/octet-stream", "chemical/x-pdb"])
@pytest.mark.parametrize("name", ["run.sh", "two words", 'a"b'])
async def test_a_common_http_library_is_understood(
    name: str, content_type: str, to_disk: Receiving, session: aiohttp.ClientSession
) -> None:
    """Fields and files that aiohttp writes, and their content, whatever headers it adds."""
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    form.add_field("user_id", "7")
    form.add_field("file", b"content", filename=name, content_type=content_type)

    async with session.post(f"http://{to_disk.host}:{to_disk.port}/", data=form) as response:
        assert response.status == 200

    upload = to_disk.uploads[-1]
    assert upload.fields == {"user_id": "7"}
    assert [(file.name, file.size) for file in upload.files] == [(name, 7)]


async def test_a_quoted_boundary_and_upper_case_are_understood(to_disk: Receiving) -> None:
    """Content-Type and header names may be written in any way that HTTP allows."""
    body = multipart(file_part("a", b"x"), field_part("user_id", b"7"))
    body = body.replace(b"Content-Disposition", b"CONTENT-disposition")

    for written in (f'MULTIPART/Form-Data; charset=utf-8; BOUNDARY="{FORM[-8:]}"', FORM):
        answer = await to_disk.post(body, written)
        assert answer.status == 200, answer
        assert to_disk.uploads[-1].fields == {"user_id": "7"}
