"""The zip of a few small files: the same as that of any directory, or none."""

import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from orchestrator_shared.archive import pack_directory
from orchestrator_shared.small_archive import FEW_FILES, SMALL_SIZE, pack_few
from support.zips import files_in, unzip_accepts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A working directory with a run.sh."""
    root = tmp_path / "work"
    root.mkdir()
    (root / "run.sh").write_text("echo done\n" * 20)
    return root


def _zip(root: Path, extra: dict[str, Path | bytes] | None = None) -> zipfile.ZipFile | None:
    made = pack_few(str(root), extra or {})
    if made is None:
        return None
    packed, content = made
    assert packed.size == len(content)
    return zipfile.ZipFile(BytesIO(content))


def _entries(zipped: zipfile.ZipFile) -> list[tuple[str, int, bytes, int]]:
    """Name, mode, content and time of each entry; the time as its extra field has it, in UTC."""
    return [
        (
            info.filename,
            info.external_attr >> 16,
            zipped.read(info),
            int.from_bytes(info.extra[info.extra.index(b"UT") + 5 :][:4], "little"),
        )
        for info in zipped.infolist()
    ]


def test_it_is_what_is_made_of_any_directory(root: Path, tmp_path: Path) -> None:
    """Names in their order, modes, contents and times; the entries of our own come last."""
    (root / "empty").touch()
    (root / "ü b").write_bytes(os.urandom(300))
    (root / "run.sh").chmod(0o750)
    (root / "old").write_text("x")
    os.utime(root / "old", (1_000_000_000, 1_000_000_000))
    log = tmp_path / "stdout.log"
    log.write_text("done\n" * 100)
    extra: dict[str, Path | bytes] = {"stdout.log": log}

    few = _zip(root, extra)
    assert few is not None
    pack_directory(root, extra, tmp_path / "zip")
    with zipfile.ZipFile(tmp_path / "zip") as whole:
        assert _entries(few) == _entries(whole)


def test_what_shrinks_is_deflated(root: Path) -> None:
    """And what is too short for that is stored."""
    (root / "short").write_text("aaaaaaaa")

    few = _zip(root, {"exit_code": b"0\n"})

    assert few is not None
    assert few.getinfo("run.sh").compress_size < 100
    assert few.getinfo("short").compress_type == zipfile.ZIP_STORED
    assert few.read(".orchestrator/exit_code") == b"0\n"


def test_unzip_accepts_it(root: Path, tmp_path: Path) -> None:
    """Also the program that people have."""
    made = pack_few(str(root), {"exit_code": b"0\n"})
    assert made is not None
    (tmp_path / "few.zip").write_bytes(made[1])
    assert unzip_accepts(tmp_path / "few.zip")


def test_an_empty_directory_is_an_empty_zip(tmp_path: Path) -> None:
    """No entry, and still a zip."""
    (tmp_path / "empty").mkdir()
    few = _zip(tmp_path / "empty")
    assert few is not None
    assert few.namelist() == []


def test_as_many_and_as_large_as_may_be(root: Path) -> None:
    """So many files, and so many bytes in sum."""
    size = (root / "run.sh").stat().st_size
    for n in range(FEW_FILES - 2):
        (root / f"{n}").touch()
    (root / "data").write_bytes(bytes(SMALL_SIZE - size))

    few = _zip(root)

    assert few is not None
    assert len(files_in(few)) == FEW_FILES


def _replace_by_link(root: Path) -> None:
    shutil.move(root, root.with_name("elsewhere"))
    root.symlink_to("elsewhere")


LARGER: dict[str, Callable[[Path], object]] = {
    "one file too many": lambda root: [(root / f"{n}").write_text("") for n in range(FEW_FILES)],
    "one byte too many": lambda root: (root / "data").write_bytes(
        bytes(SMALL_SIZE + 1 - (root / "run.sh").stat().st_size)
    ),
    "a directory": lambda root: (root / "folder").mkdir(),
    "a link": lambda root: (root / "link").symlink_to("run.sh"),
    "a FIFO": lambda root: os.mkfifo(root / "fifo"),
    "a reserved name": lambda root: (root / ".orchestrator").touch(),
    "a name that is not UTF-8": lambda root: os.close(
        os.open(os.fsencode(root) + b"/\xff", os.O_CREAT | os.O_WRONLY)
    ),
    "a name with a control character": lambda root: (root / "a\nb").touch(),
    "no directory": shutil.rmtree,
    "a link in its place": _replace_by_link,
}


@pytest.mark.parametrize("what", LARGER)
def test_what_is_more_than_that_is_left_to_the_other_way(root: Path, what: str) -> None:
    """None: nothing is left out, and no link is followed."""
    LARGER[what](root)
    assert _zip(root) is None


def test_a_large_log_is_more_than_that_too(root: Path, tmp_path: Path) -> None:
    """What run.sh printed counts like its files."""
    log = tmp_path / "stdout.log"
    log.write_bytes(bytes(SMALL_SIZE))
    assert _zip(root, {"stdout.log": log}) is None


def test_entries_of_our_own_are_new(root: Path) -> None:
    """Bytes that we add have the time of now, and are for their owner alone."""
    few = _zip(root, {"exit_code": b"0\n"})
    assert few is not None
    (_, mode, _, when) = _entries(few)[-1]
    assert mode == stat.S_IFREG | 0o600
    assert abs(when - time.time()) < 3600
