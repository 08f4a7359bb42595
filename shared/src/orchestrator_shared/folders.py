"""Files that are there whole or not at all, and folders that belong to one process."""

import fcntl
import os
import shutil
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
    with open(temporary, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        fsync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, whatever modes a job has left there."""

    def unlock_and_retry(function: object, name: str, _error: object) -> None:
        parent = os.path.dirname(name)  # noqa: PTH120 - shutil hands over text
        os.chmod(parent, 0o700)  # noqa: PTH101
        if os.path.isdir(name) and not os.path.islink(name):  # noqa: PTH112, PTH114
            os.chmod(name, 0o700)  # noqa: PTH101
            shutil.rmtree(name, ignore_errors=True)
        elif os.path.lexists(name):
            os.unlink(name)  # noqa: PTH108

    if path.is_symlink() or not path.exists():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, onerror=unlock_and_retry)


def check_free_disk(folder: Path, minimum: int) -> None:
    """Refuse to go on where less than `minimum` bytes are free on the disk of `folder`.

    Raises:
        NoSpace: that is so.
    """
    free = shutil.disk_usage(folder).free
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
        except BlockingIOError as error:
            self._file.seek(0)
            other = self._file.read().strip() or "another process"
            self._file.close()
            raise SettingError(
                setting=setting, problem=f"{what} is in use by {other}; give this one its own"
            ) from error
        self._file.truncate(0)
        self._file.write(owner)
        self._file.flush()

    def release(self) -> None:
        """Give the lock back."""
        self._file.close()
