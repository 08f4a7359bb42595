"""Files that are there whole or not at all, and folders that belong to one process."""

import contextlib
import fcntl
import itertools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from orchestrator_shared.errors import NoSpace, SettingError


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes, *, durable: bool) -> None:
    """Write a file so that its name never shows a part of it.

    With `durable` it also outlives a power cut once this returns; without, only the process.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def write_new(path: str, content: bytes) -> None:
    """Write a new file of few bytes, for its owner alone: three calls of the system, where open()
    of Python makes eight.

    Raises:
        OSError: there is one of this name, or the disk is full.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def list_few(folder: str | int, most: int) -> list[str]:
    """The names in a folder, but no more than `most` and one: of a million nobody waits for the
    rest. A link in its place is not followed.

    Raises:
        OSError: it is no folder, or cannot be read.
    """
    if isinstance(folder, str):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return list_few(descriptor, most)
        finally:
            os.close(descriptor)
    with os.scandir(folder) as entries:
        return [entry.name for entry in itertools.islice(entries, most + 1)]


def remove_flat(folder: str) -> bool:
    """Remove a folder of few files; False, and some of it is left, if it is more than that.

    A link in its place is not followed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        for name in os.listdir(descriptor):
            os.unlink(name, dir_fd=descriptor)
        os.rmdir(folder)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, whatever a job has left there. A link is not followed.

    A job can take rights away, and nest folders deeper than Python can nest calls or a path can be
    long. So each folder is opened up, and those inside it are moved up to the first one: what is
    left to remove is never deeper than that.

    Raises:
        OSError: something cannot be removed, as it belongs to somebody else.
    """
    try:
        root = _open_up(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink()
        return
    try:
        folders = _empty(root, root)
        while folders:
            name = folders.pop()
            folder = _open_up(name, root)
            try:
                folders += _empty(folder, root)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=root)
    finally:
        os.close(root)
    path.rmdir()


def _open_up(path: Path | str, below: int | None = None) -> int:
    """Open a folder, after its owner has been given all rights to it."""
    place = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=below)
    try:
        # By way of /proc, as O_PATH allows no fchmod; and of no name, which might become a link.
        opened = f"/proc/self/fd/{place}"
        if os.fstat(place).st_mode & 0o700 != 0o700:
            os.chmod(opened, 0o700)
        return os.open(opened, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(place)


def _empty(folder: int, root: int) -> list[str]:
    """Remove the files of a folder, and move its folders into the root; gives their names there."""
    found = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=folder)
            elif folder == root:
                found.append(entry.name)
            else:
                # Only a folder that may be written to can be moved.
                os.close(_open_up(entry.name, folder))
                name = f".removed-{secrets.token_hex(16)}"
                os.rename(entry.name, name, src_dir_fd=folder, dst_dir_fd=root)
                found.append(name)
    return found


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """The path of a Unix socket by way of its open folder: an address has room for 107 bytes,
    however deep the folder lies."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def check_free_disk(folder: Path, minimum: int) -> None:
    """Refuse to go on where less than `minimum` bytes are free on the disk of `folder`.

    Raises:
        NoSpace: that is so.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < minimum:
        raise NoSpace(problem=f"{free} bytes are free, MIN_FREE_DISK is {minimum}")


class FolderLock:
    """A lock on a name for the life of this process: released by the system however it ends."""

    def __init__(self, path: Path, what: Path, setting: str, owner: str) -> None:
        """Take the lock on the file `path` for `what`, which the setting names.

        Raises:
            SettingError: another process has it, or the path cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+")  # noqa: SIM115 - held for the life of the process
        except OSError as error:
            raise SettingError(
                setting=setting, problem=f"{path.parent} cannot be written: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            problem = f"{path} cannot be locked: {error.strerror}"
            if isinstance(error, BlockingIOError):
                self._file.seek(0)
                other = self._file.read().strip() or "another process"
                problem = f"{what} is in use by {other}; give this one its own"
            self._file.close()
            raise SettingError(setting=setting, problem=problem) from error
        self._file.truncate(0)
        self._file.write(owner)
        self._file.flush()

    def release(self) -> None:
        """Give the lock back."""
        self._file.close()
