"""Which client this is: one process, one DATA_PATH, and ids that never repeat."""

import os
import secrets
import time
from pathlib import Path
from typing import Final

from orchestrator_shared.errors import SettingError
from orchestrator_shared.folders import FolderLock, fsync_folder, write_whole

OWNER: Final = "an orch-client"
#: How every SQLite database begins, where our index of payloads differs from others (its
#: application id, see payloads.py), and how much of a database may name its tables (bytes).
_SQLITE: Final = b"SQLite format 3\0"
_OUR_INDEX: Final = (slice(68, 72), b"orch")
_SCHEMA_SIZE: Final = 64 * 1024


class Identity:
    """The instance (the id of this DATA_PATH), the start (of this process), and the lock."""

    def __init__(self, data_path: Path) -> None:
        """Take DATA_PATH for the life of the process, and make what is missing in it.

        Raises:
            SettingError: another process has it, it is an original client's, or it cannot be
                written.
        """
        _refuse_original(data_path)
        self._lock = FolderLock(data_path / "lock", data_path, "DATA_PATH", OWNER)
        try:
            for name in ("payloads", "work", "tmp"):
                (data_path / name).mkdir(mode=0o700, exist_ok=True)
            file = data_path / "instance"
            if not file.exists():
                write_whole(file, secrets.token_hex(16).encode() + b"\n", durable=True)
            self.instance = file.read_text().strip()
            self._counter = os.open(data_path / "highest_id", os.O_RDWR | os.O_CREAT, 0o600)
            fsync_folder(data_path)
        except OSError as error:
            self._lock.release()
            raise SettingError(
                setting="DATA_PATH", problem=f"{data_path} cannot be written: {error.strerror}"
            ) from error
        self.start = secrets.token_hex(8)
        text = os.pread(self._counter, 32, 0).strip()
        self._highest = int(text) if text.isdigit() else 0

    def saw(self, id: int) -> None:
        """This id has been given."""
        self._highest = max(self._highest, id)

    def next_id(self) -> int:
        """A new id: above all that were ever given, and no less than the Unix time, so that not
        even an emptied disk repeats one."""
        self._highest = max(self._highest + 1, int(time.time()))
        os.pwrite(self._counter, f"{self._highest:>20}\n".encode(), 0)
        return self._highest

    def release(self) -> None:
        """Give DATA_PATH back."""
        os.close(self._counter)
        self._lock.release()


def _refuse_original(data_path: Path) -> None:
    """Leave the folder of an original client alone: its server may ask for what is in it yet.

    Raises:
        SettingError: it is one.
    """
    try:
        if (data_path / "instance").exists() or not data_path.is_dir():
            return
        left = next(filter(_is_of_original, data_path.iterdir()), None)
    except OSError as error:
        problem = f"{error.filename} cannot be read: {error.strerror}"
        raise SettingError(setting="DATA_PATH", problem=problem) from error
    if left is not None:
        raise SettingError(
            setting="DATA_PATH",
            problem=f"{data_path} is the folder of an original client, which left '{left.name}' "
            "there, and stays as it is; let that client run until its server has all results, "
            "then choose an empty folder",
        )


def _is_of_original(entry: Path) -> bool:
    """Whether it is the folder of a payload, which has its id as name, or the table of them."""
    if entry.is_dir():
        return entry.name.isascii() and entry.name.isdigit()
    if not entry.is_file():
        return False
    try:
        with open(entry, "rb") as file:
            start = file.read(_SCHEMA_SIZE)
    except OSError:
        return False
    where, ours = _OUR_INDEX
    return start.startswith(_SQLITE) and b"payloads" in start and start[where] != ours
