"""Zips of directories that change while they are read."""

import asyncio
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stream_zip import ZipError

from orchestrator_shared.archive import READ_SIZE, in_thread, pack_directory, zip_directory
from support.limits import open_descriptors
from support.zips import files_in, packed, read_zip, skipped_in

LARGE = os.urandom(8 * READ_SIZE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory whose first file is so large that the zip comes in many chunks."""
    root = tmp_path / "work"
    (root / "dir").mkdir(parents=True)
    (root / "a large one").write_bytes(LARGE)
    (root / "dir" / "file").write_bytes(b"content")
    (root / "last").write_bytes(b"last")
    return root


def begun(root: Path) -> tuple[bytes, Iterator[bytes]]:
    """The first chunk of a live zip: the root is listed, and nothing else but the first file."""
    chunks = zip_directory(root, {}, live=True)
    return next(chunks), chunks


def test_a_file_that_grows_faster_than_it_is_read_has_an_end(root: Path) -> None:
    """It is packed as long as it was when it was opened."""
    first, chunks = begun(root)
    taken = [first]
    with open(root / "a large one", "ab") as growing:
        for chunk in chunks:
            taken.append(chunk)
            growing.write(bytes(2 * READ_SIZE))
            growing.flush()
            assert len(taken) < 100

    assert files_in(read_zip(taken))["a large one"] == LARGE


def test_a_file_that_shrinks_is_packed_as_far_as_it_goes(root: Path) -> None:
    """The zip stays whole."""
    first, chunks = begun(root)
    os.truncate(root / "a large one", 3 * READ_SIZE)

    content = files_in(read_zip([first, *chunks]))["a large one"]

    assert len(content) < len(LARGE)
    assert LARGE.startswith(content)


def test_a_directory_replaced_by_a_link_leads_nowhere_else(root: Path, tmp_path: Path) -> None:
    """What is outside stays outside, whenever the link appears."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    first, chunks = begun(root)
    (root / "dir").rename(tmp_path / "moved")
    (root / "dir").symlink_to(tmp_path / "outside")

    zipped = read_zip([first, *chunks])

    assert set(files_in(zipped)) == {"a large one", "last"}
    assert skipped_in(zipped) == {"dir": "is gone"}


def test_a_directory_above_replaced_by_a_link_leads_nowhere_else(
    root: Path, tmp_path: Path
) -> None:
    """Also where the file itself was seen before, through the directory that it was then."""
    (root / "dir" / "a first").write_bytes(LARGE)
    (root / "a large one").unlink()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    first, chunks = begun(root)
    (root / "dir").rename(tmp_path / "moved")
    (root / "dir").symlink_to(tmp_path / "outside")

    zipped = read_zip([first, *chunks])

    assert files_in(zipped) == {"dir/a first": LARGE, "last": b"last"}
    assert skipped_in(zipped) == {"dir/file": "is gone"}


@pytest.mark.parametrize("replacement", ["link", "fifo", "directory", "nothing"])
def test_a_file_that_becomes_something_else_is_left_out(replacement: str, root: Path) -> None:
    """Between the moment it is listed and the moment it is opened."""
    first, chunks = begun(root)
    (root / "last").unlink()
    if replacement == "link":
        (root / "last").symlink_to("/etc/passwd")
    elif replacement == "fifo":
        os.mkfifo(root / "last")
    elif replacement == "directory":
        (root / "last").mkdir()

    zipped = read_zip([first, *chunks])

    assert set(files_in(zipped)) == {"a large one", "dir/file"}
    assert set(skipped_in(zipped)) == {"last"}


def test_what_vanishes_takes_nothing_else_with_it(root: Path) -> None:
    """Files that come and go beside them do not hide the others."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for n in range(0, 50, 2):
                (root / "dir" / f"temporary {n}").touch()
                os.mkfifo(root / "dir" / f"temporary {n + 1}")
            for n in range(50):
                (root / "dir" / f"temporary {n}").unlink()

    busy = threading.Thread(target=come_and_go)
    busy.start()
    try:
        for _ in range(30):
            assert files_in(packed(root, live=True))["dir/file"] == b"content"
    finally:
        stop.set()
        busy.join()


def test_a_working_directory_that_is_removed_ends_the_zip_well(root: Path) -> None:
    """What had been read is there, the rest is named."""
    first, chunks = begun(root)
    shutil.rmtree(root)

    zipped = read_zip([first, *chunks])

    assert files_in(zipped) == {"a large one": LARGE}
    assert skipped_in(zipped) == {"dir": "is gone", "last": "is gone"}


def test_a_live_zip_stores_nothing(root: Path) -> None:
    """A stored file has its checksum before its content: it could not change any more."""
    kinds = {info.compress_type for info in packed(root, live=True).infolist() if info.file_size}

    assert kinds == {zipfile.ZIP_DEFLATED}


def test_a_change_during_packing_is_noticed(root: Path) -> None:
    """Without `live` a stored file has to be what it was."""
    chunks = zip_directory(root, {})
    next(chunks)
    with open(root / "a large one", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([LARGE[-1] ^ 1]))

    with pytest.raises(ZipError):
        list(chunks)


def test_what_a_job_left_running_cannot_keep_its_end_away(root: Path, tmp_path: Path) -> None:
    """A file that never stops changing is packed as it is read, and the zip is whole."""
    stop = threading.Event()

    def change() -> None:
        with open(root / "a large one", "r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), os.urandom(8), 0)

    busy = threading.Thread(target=change)
    busy.start()
    try:
        for _ in range(5):
            pack_directory(root, {}, tmp_path / "zip")
            assert zipfile.ZipFile(tmp_path / "zip").testzip() is None
    finally:
        stop.set()
        busy.join()


async def test_the_event_loop_gets_the_same_bytes(root: Path) -> None:
    """Chunk by chunk out of a thread."""
    chunks = [chunk async for chunk in in_thread(lambda: zip_directory(root, {}, live=True))]

    assert files_in(read_zip(chunks)) == files_in(packed(root))
    assert len(chunks) > 1


async def test_a_reader_that_goes_away_leaves_no_file_open(root: Path) -> None:
    """The file under way is closed once nobody wants its rest."""
    before = open_descriptors()
    chunks = in_thread(lambda: zip_directory(root, {}, live=True))
    await anext(chunks)
    during = open_descriptors()

    await chunks.aclose()  # type: ignore[attr-defined] # an async generator has it
    # A thread lets go of what it has worked on a moment after its result is known.
    await asyncio.get_running_loop().shutdown_default_executor()

    assert during > before
    assert open_descriptors() == before
