"""An upload is the same wherever the network has cut it into chunks."""

import asyncio
import contextlib
import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from orchestrator_shared.errors import BadUpload
from orchestrator_shared.uploads import Upload, receive_upload
from support.receiving import BOUNDARY, FORM, field_part, file_part, multipart

#: What is nearly a boundary, and must stay content.
PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n-",
    b"\r\n--",
    f"\r\n--{BOUNDARY[:-1]}".encode(),
    f"\r\n--{BOUNDARY}-x".encode(),
    f"\r\n--{BOUNDARY}x".encode(),
    f"\r\n--{BOUNDARY}\rx".encode(),
    f"--{BOUNDARY}".encode(),
    f"--{BOUNDARY}--".encode(),
    b"--",
    b"x",
    b"\0\xff",
]


class Chunks:
    """The content of a request that comes in exactly these chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def is_eof(self) -> bool:
        """Whether all of it is there: more may come."""
        return False

    async def readany(self) -> bytes:
        """The next one; empty at the end."""
        return next(self._chunks, b"")


async def receive_chunks(
    chunks: Iterable[bytes], folder: Path, inline_limit: int = 10**6
) -> Upload:
    """Receive a body that comes in these chunks."""
    content: Any = Chunks(chunks)
    request = make_mocked_request("POST", "/", {"Content-Type": FORM}, payload=content)
    return await receive_upload(request, folder, 10**6, inline_limit)


def contents(upload: Upload) -> list[bytes]:
    """The bytes of each file, from wherever they are."""
    if upload.folder is not None:
        return [(upload.folder / file.name).read_bytes() for file in upload.files]
    assert upload.body is not None
    found = []
    start = 0
    for file in upload.files:
        found.append(upload.body[start : start + file.size])
        start += file.size
    return found


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    """The body, cut at these places."""
    ends = sorted({*places, len(body)} - {0})
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def check(upload: Upload, files: Sequence[bytes]) -> None:
    """These are its files, and what it says of them is so."""
    assert contents(upload) == list(files)
    assert [file.size for file in upload.files] == [len(content) for content in files]
    assert [file.sha256 for file in upload.files] == [
        hashlib.sha256(content).hexdigest() for content in files
    ]
    assert upload.fields == {"user_id": "7"}


@pytest.mark.parametrize("inline_limit", [10**6, 0])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
async def test_chunks_of_a_few_bytes_make_the_same_files(
    size: int, inline_limit: int, tmp_path: Path
) -> None:
    """Each header, boundary and content is cut at every place, in memory and on disk."""
    files = [b"".join(PIECES), b"", b"end"]
    body = multipart(
        file_part("ü.txt", files[0]),
        field_part("user_id", b"7"),
        file_part("empty", files[1]),
        file_part("last", files[2]),
    )

    upload = await receive_chunks(
        cut(body, range(size, len(body), size)), tmp_path / "up", inline_limit
    )

    check(upload, files)
    assert (upload.folder is None) == (inline_limit > 0)


def near_boundaries(chance: random.Random) -> bytes:
    """Some content of which nothing is a boundary."""
    while True:
        content = b"".join(chance.choices(PIECES, k=chance.randint(0, 8)))
        if not re.search(rf"\r\n--{BOUNDARY}(--|\r\n)".encode(), content + b"\r\n"):
            return content


async def test_any_content_in_any_chunks_makes_the_same_files(tmp_path: Path) -> None:
    """Many contents made of near boundaries, each cut at places of its own."""
    chance = random.Random(5)
    for turn in range(400):
        files = [near_boundaries(chance) for _ in range(chance.randint(1, 3))]
        parts = [file_part(f"f{n}", content) for n, content in enumerate(files)]
        body = multipart(*parts, field_part("user_id", b"7"))
        places = chance.sample(range(len(body)), chance.randint(0, 12))

        upload = await receive_chunks(cut(body, places), tmp_path / str(turn))

        check(upload, files)


async def test_a_body_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    """Only the whole final boundary says that all has come."""
    body = multipart(field_part("user_id", b"7"), file_part("a", b"content"))
    whole = len(body) - len("\r\n")
    for length in range(whole):
        with pytest.raises(BadUpload, match="cut short"):
            await receive_chunks([body[:length]] if length else [], tmp_path / "up", 0)
        assert not list(tmp_path.glob("up/*"))

    check(await receive_chunks([body[:whole]], tmp_path / "up", 0), [b"content"])


async def test_what_follows_the_end_is_passed_over(tmp_path: Path) -> None:
    """An epilogue is no part (RFC 2046, 5.1.1)."""
    body = multipart(field_part("user_id", b"7"), file_part("a", b"x"))

    upload = await receive_chunks([body, b"epilogue", file_part("b", b"y")], tmp_path)

    check(upload, [b"x"])


async def test_an_upload_that_is_cancelled_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    """Also where a thread writes just then: it is waited for, and what it wrote is removed."""
    body = multipart(file_part("big", b"x" * 900_000))
    for turns in range(100):
        threads = ThreadPoolExecutor()
        asyncio.get_running_loop().set_default_executor(threads)
        receiving = asyncio.create_task(
            receive_chunks(cut(body, [600_000]), tmp_path / "up", inline_limit=0)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await receiving).discard()
        threads.shutdown()
        assert not list(tmp_path.glob("up/*"))
