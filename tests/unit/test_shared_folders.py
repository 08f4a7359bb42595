"""Files that are whole or not there, folders that belong to one process, and their removal."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_shared.errors import NoSpace, SettingError
from orchestrator_shared.folders import (
    FolderLock,
    check_free_disk,
    fsync_file,
    fsync_folder,
    remove_tree,
    write_whole,
)
from support.limits import files_no_larger_than, open_descriptors, run_as_owner

HOLD = """
import sys
from pathlib import Path
from orchestrator_shared.folders import FolderLock
lock = FolderLock(Path(sys.argv[1]), Path("/data"), "DATA_PATH", "orch-client")
print("held", flush=True)
sys.stdin.read()
"""


# --- write_whole


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_written_and_written_again(durable: bool, tmp_path: Path) -> None:
    """The last content stands, and nothing beside it."""
    for content in (b"first, and longer", b"second"):
        write_whole(tmp_path / "file", content, durable=durable)

        assert (tmp_path / "file").read_bytes() == content
        assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """Who has the former file open keeps it; who opens it anew has the next one."""
    write_whole(tmp_path / "file", b"first", durable=False)
    with open(tmp_path / "file", "rb") as before:
        write_whole(tmp_path / "file", b"second", durable=False)

        assert before.read() == b"first"
    assert (tmp_path / "file").read_bytes() == b"second"


@pytest.mark.parametrize("before", [b"whole", None])
def test_a_write_that_fails_changes_nothing(before: bytes | None, tmp_path: Path) -> None:
    """On a full disk the former content stands, and no part of the new one is left."""
    if before is not None:
        (tmp_path / "file").write_bytes(before)

    with files_no_larger_than(2**16), pytest.raises(OSError) as failed:
        write_whole(tmp_path / "file", bytes(2**20), durable=True)

    assert failed.value.errno == errno.EFBIG
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == (
        {"file": before} if before else {}
    )


def test_durable_means_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are synced, the file before its name; without `durable` neither is."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "file", b"x", durable=False)
    assert synced == []
    write_whole(tmp_path / "file", b"x", durable=True)
    assert synced == [str(tmp_path / "file.new"), str(tmp_path)]


def test_what_is_missing_cannot_be_made_durable(tmp_path: Path) -> None:
    """An error, and no descriptor left open."""
    before = open_descriptors()
    for sync in (fsync_file, fsync_folder):
        with pytest.raises(FileNotFoundError):
            sync(tmp_path / "missing")
    fsync_folder(tmp_path)
    assert open_descriptors() == before


# --- remove_tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A folder with what a job may leave."""
    tree = tmp_path / "tree"
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_bytes(b"x")
    (tree / "a" / "empty").mkdir()
    (tree / "same" / "same" / "same").mkdir(parents=True)
    os.mkfifo(tree / "a" / "fifo")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"kept")
    for name in ("link", "a/link", "a/b/link"):
        (tree / name).symlink_to(tmp_path / "outside")
    (tree / "nowhere").symlink_to("nowhere")
    (tree / os.fsdecode(b"\xff")).mkdir()
    yield tree
    subprocess.run(["rm", "-rf", str(tree)], check=True)


def test_a_tree_is_removed_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    """Links are removed, not followed."""
    before = open_descriptors()

    remove_tree(tree)

    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside" / "kept").read_bytes() == b"kept"
    assert open_descriptors() == before


def test_what_is_no_folder_is_removed_too(tmp_path: Path) -> None:
    """A file, a link to a folder, a link to nowhere, nothing at all."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "broken").symlink_to("missing")

    for name in ("file", "link", "broken", "missing", "missing/below"):
        remove_tree(tmp_path / name)

    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("mode", [0, 0o400, 0o100, 0o500])
def test_a_tree_without_rights_is_removed(mode: int, tree: Path, tmp_path: Path) -> None:
    """By who owns it, whatever rights a job has taken away."""
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(mode)
    (tree / "a" / "b" / "file").chmod(0)
    tree.chmod(mode)

    run_as_owner(
        "import sys; from pathlib import Path\n"
        "from orchestrator_shared.folders import remove_tree\n"
        "remove_tree(Path(sys.argv[1]))",
        tree,
    )

    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


@pytest.mark.parametrize(("name", "depth"), [("d", 1500), ("d" * 250, 300)])
def test_a_tree_of_any_depth_is_removed(name: str, depth: int, tree: Path, tmp_path: Path) -> None:
    """Deeper than Python can call, or a path can be long."""
    current = os.open(tree, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=current)
        below = os.open(name, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    before = open_descriptors()

    remove_tree(tree)

    assert not tree.exists()
    assert open_descriptors() == before


def test_a_removal_that_was_cut_short_is_finished_by_the_next(tree: Path) -> None:
    """What is under way has names that the next one removes as well."""
    code = """
import os, sys
from pathlib import Path
from orchestrator_shared.folders import remove_tree
rmdir = os.rmdir
def die(name, **where):
    rmdir(name, **where)
    os._exit(0)
os.rmdir = die
remove_tree(Path(sys.argv[1]))
"""
    while tree.exists():
        left = sum(1 for _ in tree.rglob("*"))
        if not left:
            break
        subprocess.run([sys.executable, "-c", code, str(tree)], check=True)
        assert sum(1 for _ in tree.rglob("*")) < left


# --- check_free_disk


def test_a_disk_with_too_little_room_is_refused(tmp_path: Path) -> None:
    """The limit itself is enough; the message has both numbers."""
    check_free_disk(tmp_path, 0)
    check_free_disk(tmp_path, shutil.disk_usage(tmp_path).free // 2)

    with pytest.raises(NoSpace, match=f"bytes are free, MIN_FREE_DISK is {2**70}"):
        check_free_disk(tmp_path, 2**70)


# --- FolderLock


def held_elsewhere(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock; it lets go when its input ends."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_a_second_process_is_kept_off(tmp_path: Path) -> None:
    """It is told who has it; once that one has been killed it may."""
    path = tmp_path / "new" / "lock"
    with held_elsewhere(path) as other:
        with pytest.raises(SettingError) as refused:
            FolderLock(path, Path("/data"), "DATA_PATH", "orch-server")
        assert str(refused.value) == (
            "DATA_PATH: /data is in use by orch-client; give this one its own"
        )
        assert path.read_text() == "orch-client"
        other.kill()

    lock = FolderLock(path, Path("/data"), "DATA_PATH", "orch-server")
    assert path.read_text() == "orch-server"
    lock.release()


def test_a_lock_that_was_given_back_can_be_taken(tmp_path: Path) -> None:
    """In the same process too."""
    for _ in range(2):
        FolderLock(tmp_path / "lock", tmp_path, "DATA_PATH", "x").release()


def test_a_lock_without_an_owner_is_a_lock(tmp_path: Path) -> None:
    """Its process may not have come to write its name."""
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match="in use by another process"):
            FolderLock(tmp_path / "lock", tmp_path, "DATA_PATH", "x")


def test_children_do_not_hold_the_lock(tmp_path: Path) -> None:
    """What a process starts may outlive it; the lock does not."""
    lock = FolderLock(tmp_path / "lock", tmp_path, "DATA_PATH", "x")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.release()
        FolderLock(tmp_path / "lock", tmp_path, "DATA_PATH", "x").release()
        child.kill()


def test_a_path_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    """One line, and no traceback."""
    (tmp_path / "file").touch()

    with pytest.raises(SettingError, match=r"^DATA_PATH: .*file cannot be written: "):
        FolderLock(tmp_path / "file" / "lock", tmp_path, "DATA_PATH", "x")
