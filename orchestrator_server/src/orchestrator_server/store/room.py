"""The room that must be left on the disks of the server."""

from orchestrator_server.config import Config
from orchestrator_shared.folders import check_free_disk


class Room:
    """MIN_FREE_DISK on the disks of DATA_PATH and DB_PATH; one that both lie on is asked once."""

    def __init__(self, config: Config) -> None:
        folders = (config.db_path.parent, config.data_path)
        self._disks = {folder.stat().st_dev: folder for folder in folders}
        self._least = config.min_free_disk

    def check(self, size: int = 0) -> None:
        """Refuse to go on where MIN_FREE_DISK would not remain beside so many bytes.

        Raises:
            NoSpace: that is so.
        """
        for disk in self._disks.values():
            check_free_disk(disk, self._least + size)
