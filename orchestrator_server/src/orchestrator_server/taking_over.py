"""What becomes here of a job of an original server. Nothing is written yet."""

import uuid
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator_server.original_server import ImportFailed, OriginalJob
from orchestrator_server.store.job import Result
from orchestrator_shared.errors import BadUpload
from orchestrator_shared.multipart import check_name
from orchestrator_shared.status import Status
from orchestrator_shared.uploads import Upload

REASON: Final = "taken over from the original"
#: Where the original keeps the result of a job, beside its files.
RESULT: Final = "output.zip"
#: What the original calls a state in which a job has no end yet.
_ACTIVE: Final = frozenset(
    {"queued", "processing", "submitted", "prepared", "running", "locked", "unknown"}
)
_ENDS: Final[Mapping[str, tuple[Status, str | None]]] = {
    "completed": (Status.COMPLETED, None),
    "failed": (Status.FAILED, None),
    "invalid": (Status.INVALID, "user"),
    "killed": (Status.KILLED, "operator"),
    "cleaned": (Status.CLEANED, None),
}


@dataclass
class Taken:
    """A job, what becomes of it here, and why."""

    job: OriginalJob
    status: Status
    reason: str = REASON
    fault: str | None = None
    #: Its files, and its result, where they are now; None: there are none.
    source: Path | None = None
    names: Sequence[str] | None = None
    zip: Path | None = None
    #: What has been copied, as it is too large for the database.
    input: Upload | None = None
    result: Result | None = None
    #: Where that lies below DATA_PATH/jobs. The next import finds what this one leaves behind.
    folder: str = field(init=False)

    def __post_init__(self) -> None:
        place = f"{self.job.id} {self.job.loc}"
        self.folder = uuid.uuid5(uuid.NAMESPACE_URL, place).hex

    def fail(self, reason: str) -> "Taken":
        """It cannot go on here, and that is nobody's fault."""
        self.status, self.fault = Status.FAILED, "infrastructure"
        self.reason = f"{REASON}: {reason}"
        return self


def is_sent(job: OriginalJob) -> bool:
    """Whether its client has it, as far as the original knows."""
    return job.status in _ACTIVE and job.dest_id is not None


def look_at(job: OriginalJob, data: Path) -> Taken:
    """What becomes of a job.

    Raises:
        ImportFailed: nobody can say.
        OSError: a file cannot be read.
    """
    if job.status not in _ACTIVE and job.status not in _ENDS:
        raise ImportFailed(problem=f"its job {job.id} has the unknown state '{job.status}'")
    taken = Taken(job, Status.QUEUED)
    if job.status == "cleaned":
        taken.fail("it had removed its files, and does not say how it had ended")
        taken.status = Status.CLEANED
        return taken
    taken.source = job.folder(data)
    waits = job.status in _ACTIVE and not is_sent(job)
    unusable = None
    if taken.source is not None:
        files = [entry.name for entry in taken.source.iterdir() if _is_file(entry)]
        # What was sent to nobody has no result: the file is one of its own.
        files = sorted(name for name in files if waits or name != RESULT)
        unusable = next(filter(None, map(_why_unusable, files)), None)
        # Of what goes on all files are needed, or none.
        taken.names = files if unusable is None else None
    if waits:
        return _look_at_waiting(taken, unusable)
    if is_sent(job):
        taken.status = Status.RUNNING
        return taken
    taken.status, taken.fault = _ENDS[job.status]
    if taken.source is not None and _is_readable(taken.source / RESULT):
        taken.zip = taken.source / RESULT
    elif taken.status is Status.COMPLETED:
        taken.fail(f"its {RESULT} is missing or damaged")
    return taken


def _look_at_waiting(taken: Taken, unusable: str | None) -> Taken:
    """A job that goes on as Queued, if it can."""
    if unusable is not None:
        taken.status, taken.fault = Status.INVALID, "user"
        taken.reason = f"{REASON}: {unusable}"
    elif not taken.names:
        taken.fail("its files are missing")
    return taken


def _is_file(entry: Path) -> bool:
    return entry.is_file() and not entry.is_symlink()


def _why_unusable(name: str) -> str | None:
    """Why this cannot be the name of a file here; None if it can."""
    try:
        check_name(name)
    except BadUpload as error:
        return str(error.details["problem"])
    return None


def _is_readable(file: Path) -> bool:
    """Whether it is a zip of which each file can be read.

    Raises:
        OSError: that cannot be found out.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            return packed.testzip() is None
    except (FileNotFoundError, IsADirectoryError):
        return False
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ):
        return False
