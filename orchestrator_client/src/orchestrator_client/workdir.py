"""One payload's directories: the job's own, and beside them what the job must not touch.

    DATA_PATH/
      payloads/<id>/    payload.json, run (supervisor.py), stdout.log, stderr.log, result.zip,
                        end.json: written in this order
      work/<id>/        job/ (the working directory), home/, tmp/
      tmp/              what is being received, and what is being removed

From its working directory a job reaches its own home and tmp, and by no name that it is given
what the client knows of it.

Paths are plain text here: of a job that takes no time, pathlib would take a tenth.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from orchestrator_client.payloads import PayloadEnd
from orchestrator_client.processes import boot_id
from orchestrator_shared.archive import Packed, pack_directory
from orchestrator_shared.folders import list_few, remove_flat, remove_tree, write_new, write_whole
from orchestrator_shared.protocol import STDERR_TAIL
from orchestrator_shared.small_archive import pack_few


class Claim(Struct, frozen=True):
    """Whose payload it is. A server that does not say who it is has no name, job or attempt."""

    server: str
    job: int | None
    attempt: int | None
    service: str
    #: How long the attempt may run (seconds); None: as long as it likes.
    limit_s: float | None = None


class _Taken(Claim, frozen=True, kw_only=True):
    """What payload.json says: whose it is, and the boot of the machine in which it was taken."""

    boot: str


_read_taken = msgspec.json.Decoder(_Taken).decode
_read_end = msgspec.json.Decoder(PayloadEnd).decode


class Workdir:
    """The directories of one payload. All methods block."""

    def __init__(self, data_path: Path, id: int) -> None:
        self.id = id
        self._tmp = f"{data_path}/tmp"
        self._work = f"{data_path}/work/{id}"
        self.job = f"{self._work}/job"
        self.home = f"{self._work}/home"
        self.tmp = f"{self._work}/tmp"
        self._control = f"{data_path}/payloads/{id}"
        self._taken = f"{self._control}/payload.json"
        self._end = f"{self._control}/end.json"
        #: What the supervisor keeps of the run.
        self.run = f"{self._control}/run"
        #: What run.sh printed, and what as errors.
        self.stdout = f"{self._control}/stdout.log"
        self.stderr = f"{self._control}/stderr.log"
        #: The packed working directory.
        self.result = f"{self._control}/result.zip"

    @property
    def has_run_sh(self) -> bool:
        """Whether there is something to run."""
        return os.path.isfile(f"{self.job}/run.sh")

    def prepare(self, claim: Claim, place: Callable[[str], None]) -> None:
        """Make the directories; `place` puts the files into the working directory it is given.

        payload.json comes last, and whole: what lacks it was never taken.
        """
        try:
            for folder in (self._work, self.home, self.tmp, self._control):
                os.mkdir(folder, 0o700)
            place(self.job)
            taken = _Taken(**asdict(claim), boot=boot_id())
            # A part of it cannot be read: it needs no other name until it is whole.
            write_new(self._taken, msgspec.json.encode(taken))
        except BaseException:
            self.remove()
            raise

    def claim(self) -> tuple[Claim, bool] | None:
        """Whose it is, and whether the machine went down since it was taken; None if it was never
        taken as a whole."""
        try:
            taken = _read_taken(_read(self._taken))
        except (OSError, ValueError):
            return None
        claim = Claim(taken.server, taken.job, taken.attempt, taken.service, taken.limit_s)
        return claim, taken.boot != boot_id()

    def stderr_tail(self) -> str | None:
        """The last bytes that run.sh printed as errors; None if it did not run."""
        try:
            with open(self.stderr, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - STDERR_TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return None

    def logs(self, exit_code: int | None) -> dict[str, Path | bytes]:
        """Our own entries of the zip."""
        entries: dict[str, Path | bytes] = {
            "stdout.log": Path(self.stdout),
            "stderr.log": Path(self.stderr),
        }
        if exit_code is not None:
            entries["exit_code"] = f"{exit_code}\n".encode()
        return entries

    def seal_small(self, end: PayloadEnd) -> PayloadEnd | None:
        """Seal it where all that it leaves is a few small files: that takes less time than to have
        another thread do it. None if it is more than that.

        Raises:
            OSError: the disk is full or fails; it can be tried again.
        """
        try:
            if list_few(self.home, 0) or list_few(self.tmp, 0):
                # What is not packed is to go soon.
                return None
        except OSError:
            return None
        packed = pack_few(self.job, self.logs(end.exit_code))
        if packed is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.result)
        write_new(self.result, packed[1])
        return self._write_sealed(end, packed[0])

    def seal(self, end: PayloadEnd) -> PayloadEnd:
        """Pack what the payload leaves, once, and write down its end; gives the whole end back.

        Raises:
            OSError: the disk is full or fails; it can be tried again.
        """
        logs = self.logs(end.exit_code)
        return self._write_sealed(end, pack_directory(Path(self.job), logs, Path(self.result)))

    def _write_sealed(self, end: PayloadEnd, packed: Packed) -> PayloadEnd:
        return self.write_end(
            replace(
                end,
                stderr_tail=self.stderr_tail(),
                result_size=packed.size,
                result_sha256=packed.sha256,
            )
        )

    def write_end(self, end: PayloadEnd) -> PayloadEnd:
        """Write down an end: from now on nothing else can become of the payload."""
        content = msgspec.json.encode(end)
        if end.handed_back:
            # A client often hands back as its machine goes down.
            write_whole(Path(self._end), content, durable=True)
        else:
            # A part of it, of a try before this one too, cannot be read, and is no end.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._end)
            write_new(self._end, content)
        return end

    def read_end(self) -> PayloadEnd | None:
        """The end that was written down; None if there is none yet."""
        try:
            return _read_end(_read(self._end))
        except (OSError, ValueError):
            return None

    def read_result(self) -> bytes:
        """The packed result, where that is small."""
        return _read(self.result)

    def is_whole(self, end: PayloadEnd) -> bool:
        """Whether what was packed is still what it was then."""
        if end.result_size is None:
            return True
        try:
            with open(self.result, "rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError:
            return False
        return digest.hexdigest() == end.result_sha256

    def remove_work(self) -> None:
        """Remove what has been packed."""
        self._remove(self._work)
        for path in (self.stdout, self.stderr):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def remove(self) -> None:
        """Remove everything: first what says that it was taken."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._taken)
        if not remove_flat(self._control):
            self._remove(self._control)
        self._remove(self._work)

    def _remove(self, folder: str) -> None:
        """In one step: a kill leaves no half of it, and two that remove it do not meet."""
        kind = folder.split("/")[-2]
        removed = f"{self._tmp}/{kind}-{self.id}"
        try:
            try:
                os.rename(folder, removed)
            except PermissionError:
                # A job may have taken from its own folder the right to be moved.
                os.chmod(folder, 0o700)
                os.rename(folder, removed)
        except FileNotFoundError:
            return
        folders = (f"{removed}/job", f"{removed}/home", f"{removed}/tmp", removed)
        if not all(remove_flat(folder) for folder in folders):
            remove_tree(Path(removed))


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def all_ids(data_path: Path) -> Iterable[int]:
    """The ids that have a directory, oldest first."""
    found = set()
    for folder in (data_path / "payloads", data_path / "work"):
        found |= {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()}
    return sorted(found)
