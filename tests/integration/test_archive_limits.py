"""Zips of very many, very large and very deep things, and packing that fails."""

import errno
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_shared.archive import pack_directory, zip_directory
from support.limits import (
    descriptors_below,
    files_no_larger_than,
    memory_grown_by,
    open_descriptors,
)
from support.zips import files_in, packed, read_zip, skipped_in, unzip_accepts


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, which is removed: Python cannot remove some of these."""
    root = tmp_path / "work"
    root.mkdir()
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)


def nest(root: Path, name: str, depth: int) -> None:
    """Make directories of one name in each other, deeper than a path can say."""
    current = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=current)
        below = os.open(name, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=current))
    os.close(current)


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_more_entries_than_a_zip_of_old_could_count(root: Path, tmp_path: Path) -> None:
    """70,000 files: all of them are there (ZIP64)."""
    count = 70_000
    folder = os.open(root, os.O_RDONLY)
    for n in range(count):
        # A file system may allow no more than 65,000 links to one file.
        if n % 30_000 == 0:
            source = f"{n:05}"
            (root / source).write_bytes(b"x")
        else:
            os.link(source, f"{n:05}", src_dir_fd=folder, dst_dir_fd=folder)
    os.close(folder)

    pack_directory(root, {}, tmp_path / "zip")

    with zipfile.ZipFile(tmp_path / "zip") as zipped:
        assert zipped.namelist() == [f"{n:05}" for n in range(count)]
        assert zipped.read(f"{count - 1:05}") == b"x"
    assert unzip_accepts(tmp_path / "zip")


def test_many_small_files_come_in_few_chunks(root: Path) -> None:
    """Each chunk costs a thread and a write: they are worth it."""
    for n in range(2000):
        (root / str(n)).write_bytes(b"x")

    chunks = list(zip_directory(root, {}))

    assert len(files_in(read_zip(chunks))) == 2000
    assert len(chunks) <= 3


def test_directories_deeper_than_python_can_call(root: Path) -> None:
    """800 of them in each other."""
    nest(root, "d", 800)

    zipped = packed(root)

    assert zipped.namelist()[-1] == "d/" * 800 + "file"
    assert len(zipped.namelist()) == 801


def test_a_path_longer_than_a_zip_can_say_is_left_out(root: Path) -> None:
    """65,535 bytes at most; what lies above is there."""
    name = "d" * 250
    nest(root, name, 270)
    (root / "kept").write_bytes(b"kept")

    zipped = packed(root)

    assert files_in(zipped) == {"kept": b"kept"}
    assert max(map(len, zipped.namelist())) == 261 * 251
    assert skipped_in(zipped) == {"/".join([name] * 262): "a path that is too long"}


@pytest.mark.parametrize("shrinks", [True, False])
def test_a_large_file_needs_little_memory(shrinks: bool, root: Path, tmp_path: Path) -> None:
    """256 MB are packed with less than 16 MiB more in use."""
    (root / "small").write_bytes(os.urandom(1000))
    block = bytes(2**20) if shrinks else os.urandom(2**20)
    with open(tmp_path / "large", "wb") as file:
        for _ in range(256):
            file.write(block)
    code = """
from pathlib import Path
from orchestrator_shared.archive import pack_directory
root, large, target = map(Path, sys.argv[1:])
pack_directory(root, {}, target)
large.rename(root / "large")
begin()
assert (pack_directory(root, {}, target).size < 2**25) == SHRINKS
""".replace("SHRINKS", str(shrinks))

    assert memory_grown_by(code, root, tmp_path / "large", tmp_path / "zip") < 16 * 2**20


def test_a_disk_that_is_full_is_told_and_nothing_is_left(root: Path, tmp_path: Path) -> None:
    """The error says what it is, and once there is room it can be done."""
    (root / "file").write_bytes(os.urandom(2**20))
    target = tmp_path / "zip"

    with files_no_larger_than(2**19), pytest.raises(OSError) as failed:
        pack_directory(root, {}, target)

    assert failed.value.errno == errno.EFBIG
    assert names_in(tmp_path) == ["work"]
    pack_directory(root, {}, target)
    assert list(files_in(zipfile.ZipFile(target))) == ["file"]


def test_a_failure_leaves_an_earlier_zip_as_it_was(root: Path, tmp_path: Path) -> None:
    """A name shows a whole zip or none."""
    (root / "file").write_bytes(os.urandom(2**20))
    (tmp_path / "zip").write_bytes(b"earlier")

    with files_no_larger_than(2**19), pytest.raises(OSError):
        pack_directory(root, {}, tmp_path / "zip")

    assert (tmp_path / "zip").read_bytes() == b"earlier"
    assert names_in(tmp_path) == ["work", "zip"]


def test_a_target_in_a_missing_folder_fails(root: Path, tmp_path: Path) -> None:
    """It is not made: somebody has removed it for a reason."""
    with pytest.raises(FileNotFoundError):
        pack_directory(root, {}, tmp_path / "missing" / "zip")

    assert names_in(tmp_path) == ["work"]


def test_nothing_is_left_out_for_want_of_descriptors(root: Path) -> None:
    """With fewer than it needs packing fails, and can be tried again: a zip has all or is none."""
    for path in ("a/b/file", "a/other", "last"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    outcomes = []
    for free in range(12):
        held = []
        highest = max(open_descriptors()) + 20
        with descriptors_below(highest):
            try:
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            for descriptor in held[:free]:
                os.close(descriptor)
            try:
                outcomes.append(len(b"".join(zip_directory(root, {}))))
            except OSError as error:
                assert error.errno == errno.EMFILE
                outcomes.append(0)
            for descriptor in held[free:]:
                os.close(descriptor)

    assert outcomes[0] == 0
    assert set(outcomes) == {0, outcomes[-1]}
