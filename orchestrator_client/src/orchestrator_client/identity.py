"""Which client this is: one process, one DATA_PATH, and ids that never repeat."""

import os
import secrets
import time
from pathlib import Path
from typing import Final

from orchestrator_shared.errors import SettingError
from orchestrator_shared.folders import FolderLock, fsync_folder, write_whole

OWNER: Final = "an orch-client"


class Identity:
    """The instance (the id of this DATA_PATH), the start (of this process), and the lock."""

    def __init__(self, data_path: Path) -> None:
        """Take DATA_PATH for the life of the process, and make what is missing in it.

        Raises:
            SettingError: another process has it, or it cannot be written.
        """
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
