"""What of a working directory is in its zip, and how."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from orchestrator_shared.archive import pack_directory
from support.zips import files_in, packed, skipped_in, unzip_accepts

TEXT = b"ATOM      1  N   MET A   1      27.340  24.430   2.614\n" * 5000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty working directory."""
    root = tmp_path / "work"
    root.mkdir()
    return root


def test_files_keep_their_paths_and_content(root: Path) -> None:
    """Everything below the directory is there under its relative path, and nothing else."""
    files = {"run.sh": b"echo", "a/b/c/deep.txt": b"deep", "a/x": b"", "a b/ü\n'\"": b"odd"}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    zipped = packed(root)

    assert files_in(zipped) == files
    assert set(zipped.namelist()) == {*files, "a/", "a/b/", "a/b/c/", "a b/"}
    assert skipped_in(zipped) == {}


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o400, 0o4711])
def test_a_file_keeps_its_mode(mode: int, root: Path) -> None:
    """With its kind, so that unpackers restore it."""
    (root / "file").touch()
    (root / "file").chmod(mode)

    assert packed(root).getinfo("file").external_attr >> 16 == 0o100000 | mode


def test_an_empty_directory_is_there_with_its_mode(root: Path) -> None:
    """As an entry of its own, which unpackers know as a directory."""
    (root / "a" / "empty").mkdir(parents=True)
    (root / "a" / "empty").chmod(0o750)

    info = packed(root).getinfo("a/empty/")

    assert info.is_dir()
    assert info.external_attr >> 16 == 0o040750
    assert info.external_attr & 0x10


def test_an_empty_working_directory_is_an_empty_zip(root: Path, tmp_path: Path) -> None:
    """No entry, and still a zip."""
    assert packed(root).namelist() == []
    pack_directory(root, {}, tmp_path / "zip")
    assert zipfile.ZipFile(tmp_path / "zip").namelist() == []


@pytest.mark.parametrize("size", [1, 10, 1000, 100_000, 2_000_000])
def test_what_does_not_shrink_is_stored(size: int, root: Path) -> None:
    """Random bytes, with the right checksum and size in the header before them."""
    content = os.urandom(size)
    (root / "random").write_bytes(content)

    zipped = packed(root)

    assert zipped.getinfo("random").compress_type == zipfile.ZIP_STORED
    assert zipped.getinfo("random").compress_size == size
    assert zipped.read("random") == content


@pytest.mark.parametrize(
    "content",
    [TEXT, TEXT[:200], os.urandom(400_000) + bytes(2_000_000), bytes(300_000)],
    ids=["text", "short", "half", "zeros"],
)
def test_what_shrinks_is_deflated(content: bytes, root: Path) -> None:
    """Also where only a part of it does."""
    (root / "file").write_bytes(content)

    zipped = packed(root)

    assert zipped.getinfo("file").compress_type == zipfile.ZIP_DEFLATED
    assert zipped.getinfo("file").compress_size < len(content)
    assert zipped.read("file") == content


def test_text_shrinks_well(root: Path) -> None:
    """To a fraction, and not only a little."""
    (root / "file").write_bytes(TEXT)

    assert packed(root).getinfo("file").compress_size < len(TEXT) / 10


@pytest.mark.parametrize(
    ("modified", "year"),
    [(-(10**9), 1980), (0, 1980), (1_700_000_000, 2023), (4_400_000_000, 2038), (2**40, 2038)],
)
def test_any_time_of_change_can_be_packed(modified: int, year: int, root: Path) -> None:
    """What a zip cannot say becomes the nearest that it can."""
    (root / "dir").mkdir()
    (root / "dir" / "file").write_bytes(b"x")
    for path in (root / "dir" / "file", root / "dir"):
        os.utime(path, (modified, modified))
    # A file system may itself have a last year.
    kept = min(year, 2038) if (root / "dir").stat().st_mtime > 2**31 else year

    zipped = packed(root)

    assert {info.date_time[0] for info in zipped.infolist()} == {kept}


def test_our_own_entries_come_into_their_folder(root: Path, tmp_path: Path) -> None:
    """Files and bytes; a file that is not there is left out, as run.sh did not run."""
    (tmp_path / "out").write_bytes(b"printed")
    extra: dict[str, Path | bytes] = {
        "stdout.log": tmp_path / "out",
        "stderr.log": tmp_path / "missing",
        "exit_code": b"0\n",
    }

    zipped = packed(root, extra)

    assert files_in(zipped) == {
        ".orchestrator/stdout.log": b"printed",
        ".orchestrator/exit_code": b"0\n",
    }
    assert skipped_in(zipped) == {}


def test_the_reserved_folder_of_a_job_is_left_out(root: Path) -> None:
    """What a job puts there cannot pass for what the system says of it."""
    (root / ".orchestrator" / "sub").mkdir(parents=True)
    (root / ".orchestrator" / "exit_code").write_bytes(b"forged")
    (root / "sub" / ".orchestrator").mkdir(parents=True)
    (root / "sub" / ".orchestrator" / "kept").write_bytes(b"kept")

    zipped = packed(root, {"exit_code": b"1\n"})

    assert files_in(zipped) == {
        ".orchestrator/exit_code": b"1\n",
        "sub/.orchestrator/kept": b"kept",
    }
    assert skipped_in(zipped) == {".orchestrator": "a reserved name"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_the_reserved_name_is_left_out_whatever_it_is(kind: str, root: Path) -> None:
    """A file or a link of that name as well."""
    (root / "kept").write_bytes(b"kept")
    if kind == "file":
        (root / ".orchestrator").write_bytes(b"forged")
    else:
        (root / ".orchestrator").symlink_to("kept")

    zipped = packed(root)

    assert files_in(zipped) == {"kept": b"kept"}
    assert skipped_in(zipped) == {".orchestrator": "a reserved name"}


def test_a_working_directory_that_is_gone_leaves_our_own_entries(root: Path) -> None:
    """A job may remove it; what it printed is still worth having."""
    root.rmdir()

    zipped = packed(root, {"exit_code": b"0\n"})

    assert files_in(zipped) == {".orchestrator/exit_code": b"0\n"}
    assert skipped_in(zipped) == {".": "is gone"}


def test_a_packed_zip_is_what_is_said_of_it(root: Path, tmp_path: Path) -> None:
    """Size and digest are those of the file, which any unpacker takes."""
    (root / "text").write_bytes(TEXT)
    (root / "random").write_bytes(os.urandom(600_000))
    (root / "empty").mkdir()
    target = tmp_path / "result.zip"

    said = pack_directory(root, {"exit_code": b"0\n"}, target)

    content = target.read_bytes()
    assert said.size == len(content)
    assert said.sha256 == hashlib.sha256(content).hexdigest()
    assert zipfile.ZipFile(target).testzip() is None
    assert unzip_accepts(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.zip", "work"]


def test_packing_again_replaces_what_an_earlier_start_left(root: Path, tmp_path: Path) -> None:
    """A part of a zip, and a whole one."""
    (root / "file").write_bytes(b"new")
    (tmp_path / "zip").write_bytes(b"old")
    (tmp_path / "zip.new").write_bytes(b"part" * 10_000)

    pack_directory(root, {}, tmp_path / "zip")

    assert files_in(zipfile.ZipFile(tmp_path / "zip")) == {"file": b"new"}
