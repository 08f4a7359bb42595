"""How much an upload may have, and where its files are kept."""

import hashlib
import os
from pathlib import Path

import pytest

from orchestrator_shared import uploads
from orchestrator_shared.protocol import INLINE_LIMIT
from orchestrator_shared.uploads import Upload, write_inline
from support.limits import memory_grown_by
from support.receiving import chunked, field_part, file_part, head, multipart, receiving


def described(upload: Upload) -> list[tuple[str, int, str]]:
    """What an upload says of its files."""
    return [(file.name, file.size, file.sha256) for file in upload.files]


def expected(files: dict[str, bytes]) -> list[tuple[str, int, str]]:
    """What it should say."""
    return [
        (name, len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    ]


async def test_small_files_are_kept_in_memory(tmp_path: Path) -> None:
    """Up to the limit in sum their bytes come back in order, and nothing is written."""
    files = {"a": b"first", "empty": b"", "b": os.urandom(INLINE_LIMIT - 5)}
    async with receiving(tmp_path) as server:
        upload = await server.receive(*(file_part(*file) for file in files.items()))

        assert upload.body == b"".join(files.values())
        assert upload.folder is None
        assert described(upload) == expected(files)
        assert upload.total == INLINE_LIMIT
        assert server.left == []


async def test_one_byte_more_goes_to_disk(tmp_path: Path) -> None:
    """Then all of them are files in a new folder, which the caller owns."""
    files = {"a": b"first", "empty": b"", "b": os.urandom(INLINE_LIMIT - 4), "last": b""}
    async with receiving(tmp_path) as server:
        upload = await server.receive(*(file_part(*file) for file in files.items()))

        assert upload.body is None
        assert upload.folder is not None
        assert server.left == [upload.folder]
        assert upload.folder.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.read_bytes() for path in upload.folder.iterdir()} == files
        assert described(upload) == expected(files)
        upload.make_durable()
        upload.discard()
        assert server.left == []
        upload.discard()


async def test_many_empty_files_go_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More names than fit into one message between server and client are no small upload."""
    monkeypatch.setattr(uploads, "INLINE_FILES_LIMIT", 50)
    async with receiving(tmp_path) as server:
        names = [str(n) for n in range(51)]

        some = await server.receive(*(file_part(name) for name in names[1:]))
        more = await server.receive(*(file_part(name) for name in names))

        assert (some.body, some.folder) == (b"", None)
        assert more.folder is not None
        assert {path.name for path in more.folder.iterdir()} == set(names)


@pytest.mark.parametrize("inline_limit", [10**6, 0])
async def test_five_thousand_files_are_one_upload(inline_limit: int, tmp_path: Path) -> None:
    """Each keeps its own content, whether they are kept in memory or on disk."""
    files = {f"file {n}": f"{n}\n".encode() for n in range(5000)}
    async with receiving(tmp_path, inline_limit=inline_limit) as server:
        upload = await server.receive(*(file_part(*file) for file in files.items()))

        assert described(upload) == expected(files)
        if upload.folder is None:
            assert upload.body == b"".join(files.values())
        else:
            assert {path.name: path.read_bytes() for path in upload.folder.iterdir()} == files


async def test_a_multipart_without_parts_is_an_upload_without_files(tmp_path: Path) -> None:
    """Whether that is enough is for the handler to say."""
    async with receiving(tmp_path) as server:
        upload = await server.receive()

        assert (upload.files, upload.fields, upload.total) == ([], {}, 0)


@pytest.mark.parametrize("inline_limit", [10**6, 0])
async def test_files_may_have_the_limit_and_not_a_byte_more(
    inline_limit: int, tmp_path: Path
) -> None:
    """The limit is on the bytes of all files in sum, not on fields and what lies between."""
    limit = 300_000
    async with receiving(tmp_path, limit=limit, inline_limit=inline_limit) as server:
        first = file_part("a", b"x" * 200_000)
        field = field_part("f", b"x" * 60_000)
        await server.receive(field, first, file_part("b", b"y" * 100_000))
        server.uploads[-1].discard()

        answer = await server.post(multipart(field, first, file_part("b", b"y" * 100_001)))

        assert answer.status == 413
        assert f"larger than {limit} bytes" in answer.json["message"]
        assert answer.json["status"] == "Unknown"
        assert server.left == []


async def test_a_caller_far_over_the_limit_gets_its_answer(tmp_path: Path) -> None:
    """It is still sending when it is refused: the refusal arrives all the same."""
    async with receiving(tmp_path, limit=2**20) as server:
        answer = await server.post(multipart(file_part("a", b"x" * 2**25)))

        assert answer.status == 413
        assert server.left == []


async def test_a_body_without_a_length_is_taken(tmp_path: Path) -> None:
    """Chunked, and byte by byte."""
    body = multipart(field_part("user_id", b"7"), file_part("a", b"\r\n--b0\r\n"))
    async with receiving(tmp_path) as server:
        pieces = chunked(body[n : n + 1] for n in range(len(body)))

        answer = await server.send(head(None), *pieces)

        assert answer.status == 200
        assert server.uploads[-1].body == b"\r\n--b0\r\n"
        assert server.uploads[-1].fields == {"user_id": "7"}


async def test_a_length_and_single_bytes_are_taken(tmp_path: Path) -> None:
    """The same with a Content-Length."""
    body = multipart(field_part("user_id", b"7"), file_part("a", b"\r\n--b0\r\n"))
    async with receiving(tmp_path, inline_limit=0) as server:
        answer = await server.send(head(len(body)), *(body[n : n + 1] for n in range(len(body))))

        assert answer.status == 200
        folder = server.uploads[-1].folder
        assert folder is not None
        assert (folder / "a").read_bytes() == b"\r\n--b0\r\n"


async def test_uploads_at_once_do_not_meet(tmp_path: Path) -> None:
    """Each has a folder of its own, also where the names are the same."""
    async with receiving(tmp_path, inline_limit=0) as server:
        received = [await server.receive(file_part("a", b"%d" % n)) for n in range(5)]

        folders = [upload.folder for upload in received]
        assert len(set(folders)) == 5
        assert [(f / "a").read_bytes() for f in folders if f] == [b"%d" % n for n in range(5)]


def test_files_of_a_small_job_are_written_as_they_were(tmp_path: Path) -> None:
    """write_inline cuts the body into the files again."""
    files = {"a": b"first", "empty": b"", "b": b"second"}

    sizes = [(name, len(content)) for name, content in files.items()]
    write_inline(str(tmp_path), sizes, b"".join(files.values()))

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_large_upload_needs_little_memory(tmp_path: Path) -> None:
    """256 MB go to disk; caller and server together never have more than 16 MiB in use for it."""
    code = """
import asyncio
from pathlib import Path
from support.receiving import file_part, head, multipart, receiving

async def main():
    async with receiving(Path(sys.argv[1])) as server:
        piece = bytes(2**18)
        for count in (8, 1024):
            start, end = multipart(file_part("big")).split(b"\\r\\n\\r\\n", 1)
            length = len(start) + 4 + count * len(piece) + len(end)
            pieces = [piece] * count
            answer = await server.send(head(length), start + b"\\r\\n\\r\\n", *pieces, end)
            assert answer.status == 200, answer
            assert server.uploads[-1].total == count * len(piece)
            server.uploads[-1].discard()
            if count == 8:
                begin()

asyncio.run(main())
"""
    assert memory_grown_by(code, tmp_path) < 16 * 2**20
