"""The server's folders: uploads under way, the files of jobs, and their results."""

import contextlib
import errno
import hashlib
import logging
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from orchestrator_server.store.broken import DiskBroken, give_up
from orchestrator_server.store.job import JobInput
from orchestrator_shared.errors import OrchestratorError, SettingError
from orchestrator_shared.folders import fsync_file, fsync_folder, remove_tree
from orchestrator_shared.uploads import Upload, split_inline

log = logging.getLogger(__name__)

#: The folders in DATA_PATH: files of jobs, what no record owns, and what is under way.
FOLDERS: Final = ("jobs", "orphans", "tmp")


class InputDamaged(OrchestratorError):
    """input damaged: {problem}"""


class Files:
    """DATA_PATH: `jobs/<folder>/input/…`, `jobs/<folder>/result-<attempt>.zip`, `tmp/<start>/`.

    All methods block; call them in a thread.
    """

    def __init__(self, data_path: Path) -> None:
        """Make what is missing, and remove what an earlier start left under way.

        Raises:
            SettingError: DATA_PATH cannot be written.
        """
        self.data_path = data_path
        self.jobs, self._orphans, tmp = (data_path / name for name in FOLDERS)
        self.tmp = tmp / secrets.token_hex(8)
        try:
            for folder in (self.jobs, self._orphans, self.tmp):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self.tmp.parent.iterdir():
                if old != self.tmp:
                    remove_tree(old)
            fsync_folder(data_path)
        except OSError as error:
            raise SettingError(
                setting="DATA_PATH", problem=f"{data_path} cannot be written: {error.strerror}"
            ) from error

    @staticmethod
    def new_folder() -> str:
        """A name for the folder of a job, never used before. It begins with the time, so that
        those of many uploads stand side by side in the index."""
        return f"{time.time_ns():016x}{secrets.token_hex(8)}"

    def loc(self, folder: str) -> Path:
        """Where the files of a job lie, where they are files of their own."""
        return self.jobs / folder

    def input_folder(self, folder: str) -> Path:
        """Where its uploaded files lie."""
        return self.jobs / folder / "input"

    def result(self, folder: str, file: str) -> Path:
        """A result of a job."""
        return self.jobs / folder / file

    def keep_input(self, upload: Upload, folder: str) -> None:
        """Move the files of an upload to their place; once this returns they are durable."""
        if upload.folder is None:
            return
        place = self.loc(folder)
        with self._gives_up_where_broken():
            upload.make_durable()
            place.mkdir(mode=0o700)
            upload.folder.rename(place / "input")
            fsync_folder(place)
            fsync_folder(self.jobs)

    def check_input(self, folder: str, sizes: Iterable[tuple[str, int]]) -> None:
        """Look whether the files of a job are there, as long as they were.

        Raises:
            InputDamaged: they are not.
        """
        for name, size in sizes:
            try:
                present = (self.input_folder(folder) / name).stat().st_size
            except OSError as error:
                raise InputDamaged(problem=f"'{name}': {error.strerror}") from error
            if present != size:
                raise InputDamaged(problem=f"'{name}' has {present} bytes, it had {size}")

    def verify_input(self, folder: str, job_input: JobInput) -> None:
        """Compare the files of a job with their digests.

        Raises:
            InputDamaged: one is not what was uploaded.
        """
        small = dict(split_inline(job_input.sizes, job_input.body or b""))
        for file in job_input.files:
            name = file.name
            try:
                if job_input.body is not None:
                    digest = hashlib.sha256(small[name])
                else:
                    with open(self.input_folder(folder) / name, "rb") as content:
                        digest = hashlib.file_digest(content, "sha256")
            except OSError as error:
                raise InputDamaged(problem=f"'{name}': {error.strerror}") from error
            if digest.hexdigest() != file.sha256:
                raise InputDamaged(
                    problem=f"'{name}' is not what was uploaded: its SHA-256 differs"
                )

    def keep_result(self, fetched: Path, folder: str, attempt: int) -> str:
        """Move a fetched result to its place; gives its name back once it is durable."""
        name = f"result-{attempt}.zip"
        place = self.loc(folder)
        with self._gives_up_where_broken():
            fsync_file(fetched)
            place.mkdir(mode=0o700, exist_ok=True)
            fetched.replace(place / name)
            fsync_folder(place)
            fsync_folder(self.jobs)
        return name

    @contextlib.contextmanager
    def _gives_up_where_broken(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EIO:
                give_up(DiskBroken(path=self.data_path, problem=error.strerror))
            raise

    def remove(self, folder: str) -> None:
        """Remove everything that lies there for a job."""
        remove_tree(self.loc(folder))

    def folders(self, older_than: float) -> list[str]:
        """The folders of jobs that were last touched more than so many seconds ago."""
        limit = time.time() - older_than
        return [
            entry.name
            for entry in self.jobs.iterdir()
            if len(entry.name) == 32 and _touched_before(entry, limit)
        ]

    def set_aside(self, folders: Collection[str]) -> None:
        """Move folders that no record owns to `orphans/`."""
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):  # its job was cleaned just now
                (self.jobs / folder).replace(self._orphans / folder)
                (self._orphans / folder).touch()
                log.warning("%s belongs to no job: moved to %s", folder, self._orphans)

    def remove_orphans(self, max_age: float) -> None:
        """Remove what has been in `orphans/` for longer than so many seconds."""
        limit = time.time() - max_age
        for entry in self._orphans.iterdir():
            if _touched_before(entry, limit):
                remove_tree(entry)


def _touched_before(entry: Path, limit: float) -> bool:
    try:
        return entry.stat().st_mtime < limit
    except FileNotFoundError:
        return False
