"""What cannot be packed is left out and named, and nothing comes from outside the directory."""

import json
import os
import socket
from pathlib import Path

import pytest

from support.limits import run_as_owner
from support.zips import files_in, packed, skipped_in

OUT = "a link that leads out of the working directory"
NOWHERE = "a link that leads nowhere"
DIRECTORY = "a link to a directory"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A working directory with a file and a directory, and a secret beside it."""
    root = tmp_path / "work"
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "work-too").mkdir()
    (tmp_path / "work-too" / "secret").write_bytes(b"secret")
    (tmp_path / "back").symlink_to(root / "dir" / "file")
    return root


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("link", "dir/file"),
        ("link", "./dir/../dir/file"),
        ("link", "../work/dir/file"),
        ("link", "{root}/dir/file"),
        ("dir/link", "file"),
        ("dir/link", "../dir/file"),
        ("link", "../back"),
        ("link", "/proc/self/root{root}/dir/file"),
    ],
)
def test_a_link_to_a_file_inside_is_packed_as_its_content(
    name: str, target: str, root: Path
) -> None:
    """By whatever way it leads there."""
    (root / name).symlink_to(target.format(root=root))

    zipped = packed(root)

    assert files_in(zipped) == {"dir/file": b"content", name: b"content"}
    assert zipped.getinfo(name).external_attr >> 16 == (root / "dir/file").stat().st_mode
    assert skipped_in(zipped) == {}


def test_a_link_by_way_of_links_inside_is_packed(root: Path) -> None:
    """Links to links, and through a link to a directory."""
    (root / "first").symlink_to("second")
    (root / "second").symlink_to("through/file")
    (root / "through").symlink_to("dir")

    zipped = packed(root)

    assert files_in(zipped) == dict.fromkeys(["dir/file", "first", "second"], b"content")
    assert skipped_in(zipped) == {"through": DIRECTORY}


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("../secret", OUT),
        ("{root}/../secret", OUT),
        ("../work-too/secret", OUT),
        ("/etc/passwd", OUT),
        ("/etc", OUT),
        ("..", OUT),
        ("/", OUT),
        ("/nonexistent/x", OUT),
        ("/proc/self/environ", OUT),
        ("missing", NOWHERE),
        ("dir/missing", NOWHERE),
        ("dir/file/under", NOWHERE),
        ("link", NOWHERE),
        ("dir", DIRECTORY),
        ("dir/", DIRECTORY),
        (".", DIRECTORY),
        ("{root}", DIRECTORY),
        (".orchestrator/exit_code", "a link to .orchestrator"),
        (".orchestrator", "a link to .orchestrator"),
    ],
)
def test_any_other_link_is_left_out_and_named(target: str, why: str, root: Path) -> None:
    """Out, nowhere, to itself, to a directory, to our own folder."""
    (root / "link").symlink_to(target.format(root=root))

    zipped = packed(root)

    assert files_in(zipped) == {"dir/file": b"content"}
    assert skipped_in(zipped) == {"link": why}


def test_links_in_a_ring_are_left_out(root: Path) -> None:
    """They lead nowhere."""
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("dir/c")
    (root / "dir" / "c").symlink_to("../a")

    zipped = packed(root)

    assert files_in(zipped) == {"dir/file": b"content"}
    assert skipped_in(zipped) == dict.fromkeys(["a", "b", "dir/c"], NOWHERE)


def test_a_working_directory_replaced_by_a_link_is_gone(root: Path, tmp_path: Path) -> None:
    """What it leads to is none of the job's files."""
    root.rename(tmp_path / "moved")
    root.symlink_to("work-too")

    zipped = packed(root)

    assert files_in(zipped) == {}
    assert skipped_in(zipped) == {".": "is gone"}


def test_a_data_path_that_is_reached_by_a_link_is_packed(root: Path, tmp_path: Path) -> None:
    """Only the directory itself must be none."""
    (tmp_path / "alias").symlink_to(tmp_path)
    (root / "link").symlink_to("dir/file")

    zipped = packed(tmp_path / "alias" / "work")

    assert files_in(zipped) == {"dir/file": b"content", "link": b"content"}


@pytest.mark.parametrize(
    ("kind", "why"), [("fifo", "a FIFO"), ("socket", "a socket"), ("device", "a device")]
)
def test_what_is_no_file_is_left_out(kind: str, why: str, root: Path) -> None:
    """Itself, and a link to it; nothing waits for a FIFO without a writer."""
    path = root / "dir" / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as unix:
            # The path of a socket has 107 bytes at most.
            unix.bind(f"/proc/self/fd/{folder}/special")
        os.close(folder)
    else:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root can make a device")
    (root / "link").symlink_to("dir/special")

    zipped = packed(root)

    assert files_in(zipped) == {"dir/file": b"content"}
    assert skipped_in(zipped) == {"dir/special": why, "link": "is not a file"}


def test_names_that_are_not_utf_8_are_left_out(root: Path) -> None:
    """Files and directories; the list shows their bytes."""
    for name in (b"bad\xff", b"\xe4\xf6"):
        folder = root / os.fsdecode(name)
        folder.mkdir()
        (folder / "inside").write_bytes(b"lost")
    (root / os.fsdecode(b"file\xff.txt")).write_bytes(b"behind a link")
    (root / "link").symlink_to(os.fsdecode(b"file\xff.txt"))

    zipped = packed(root)

    assert files_in(zipped) == {"dir/file": b"content", "link": b"behind a link"}
    assert skipped_in(zipped) == dict.fromkeys(
        ["bad\\xff", "\\xe4\\xf6", "file\\xff.txt"], "a name that is not UTF-8"
    )


def test_each_thing_left_out_has_one_line(root: Path) -> None:
    """Whatever a job calls it."""
    (root / "a\nb\tc\x7f").symlink_to("nowhere")

    assert skipped_in(packed(root)) == {"a\\x0ab\\x09c\\x7f": NOWHERE}


def test_what_may_not_be_read_is_left_out_and_named(root: Path) -> None:
    """A client that is not root packs the rest."""
    (root / "closed").mkdir()
    (root / "closed" / "hidden").write_bytes(b"hidden")
    (root / "listed").mkdir()
    (root / "listed" / "hidden").write_bytes(b"hidden")
    (root / "unreadable").write_bytes(b"hidden")
    (root / "link").symlink_to("unreadable")
    (root / "unreadable").chmod(0)
    (root / "listed").chmod(0o400)
    (root / "closed").chmod(0)

    files, skipped = _packed_by_owner(root)

    denied = "cannot be read: permission denied"
    assert files == {"dir/file": "content"}
    assert skipped == dict.fromkeys(["unreadable", "link", "listed/hidden", "closed"], denied)


def test_a_working_directory_that_may_not_be_read_has_an_end_too(root: Path) -> None:
    """It is named, and packing does not fail, however often it were tried again."""
    root.chmod(0)

    files, skipped = _packed_by_owner(root)

    assert files == {}
    assert skipped == {".": "cannot be read: permission denied"}


def _packed_by_owner(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What is in the zip, and what is not, where modes count."""
    code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.zips import *
zipped = packed(Path(sys.argv[1]))
files = {{name: content.decode() for name, content in files_in(zipped).items()}}
print(json.dumps([files, skipped_in(zipped)]))
"""
    try:
        files, skipped = json.loads(run_as_owner(code, root))
    finally:
        for path in (root, *root.glob("*")):
            if not path.is_symlink():
                path.chmod(0o700)
    return files, skipped
