"""One payload's directories: the job's own, and beside them what the job must not touch.

    DATA_PATH/
      payloads/<id>/    payload.json, run (supervisor.py), stdout.log, stderr.log, result.zip,
                        end.json: written in this order
      work/<id>/        job/ (the working directory), home/, tmp/
      tmp/              what is being received, and what is being removed

From its working directory a job reaches its own home and tmp, and by no name that it is given
what the client knows of it.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from orchestrator_client.payloads import PayloadEnd
from orchestrator_client.processes import boot_id
from orchestrator_shared.archive import pack_directory
from orchestrator_shared.folders import remove_tree, write_whole
from orchestrator_shared.protocol import STDERR_TAIL


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
        self.control = data_path / "payloads" / str(id)
        self._tmp = data_path / "tmp"
        self._work = data_path / "work" / str(id)
        self.job = self._work / "job"
        self.home = self._work / "home"
        self.tmp = self._work / "tmp"

    @property
    def run(self) -> Path:
        """What the supervisor keeps of the run."""
        return self.control / "run"

    @property
    def stdout(self) -> Path:
        """What run.sh printed."""
        return self.control / "stdout.log"

    @property
    def stderr(self) -> Path:
        """What run.sh printed as errors."""
        return self.control / "stderr.log"

    @property
    def result(self) -> Path:
        """The packed working directory."""
        return self.control / "result.zip"

    @property
    def has_run_sh(self) -> bool:
        """Whether there is something to run."""
        return (self.job / "run.sh").is_file()

    def prepare(self, claim: Claim, place: Callable[[Path], None]) -> None:
        """Make the directories; `place` puts the files into the working directory it is given.

        payload.json comes last, and whole: what lacks it was never taken.
        """
        try:
            for folder in (self._work, self.home, self.tmp, self.control):
                folder.mkdir(mode=0o700)
            place(self.job)
            taken = _Taken(**asdict(claim), boot=boot_id())
            # A part of it cannot be read: it needs no other name until it is whole.
            (self.control / "payload.json").write_bytes(msgspec.json.encode(taken))
        except BaseException:
            self.remove()
            raise

    def claim(self) -> tuple[Claim, bool] | None:
        """Whose it is, and whether the machine went down since it was taken; None if it was never
        taken as a whole."""
        try:
            taken = _read_taken((self.control / "payload.json").read_bytes())
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
        entries: dict[str, Path | bytes] = {"stdout.log": self.stdout, "stderr.log": self.stderr}
        if exit_code is not None:
            entries["exit_code"] = f"{exit_code}\n".encode()
        return entries

    def seal(self, end: PayloadEnd) -> PayloadEnd:
        """Pack what the payload leaves, once, and write down its end; gives the whole end back.

        Raises:
            OSError: the disk is full or fails; it can be tried again.
        """
        packed = pack_directory(self.job, self.logs(end.exit_code), self.result)
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
        file, content = self.control / "end.json", msgspec.json.encode(end)
        if end.handed_back:
            # A client often hands back as its machine goes down.
            write_whole(file, content, durable=True)
        else:
            # A part of it cannot be read, and is no end.
            file.write_bytes(content)
        return end

    def read_end(self) -> PayloadEnd | None:
        """The end that was written down; None if there is none yet."""
        try:
            return _read_end((self.control / "end.json").read_bytes())
        except (OSError, ValueError):
            return None

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
        self.stdout.unlink(missing_ok=True)
        self.stderr.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything: first what says that it was taken."""
        self._remove(self.control)
        self._remove(self._work)

    def _remove(self, folder: Path) -> None:
        """In one step: a kill leaves no half of it, and two that remove it do not meet."""
        removed = self._tmp / f"{folder.parent.name}-{self.id}"
        try:
            try:
                folder.rename(removed)
            except PermissionError:
                # A job may have taken from its own folder the right to be moved.
                folder.chmod(0o700)
                folder.rename(removed)
        except FileNotFoundError:
            return
        remove_tree(removed)


def all_ids(data_path: Path) -> Iterable[int]:
    """The ids that have a directory, oldest first."""
    found = set()
    for folder in (data_path / "payloads", data_path / "work"):
        found |= {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()}
    return sorted(found)
