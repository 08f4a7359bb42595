"""What a stopped server of the original has left, as one was recorded."""

import contextlib
import hashlib
import io
import shutil
import sqlite3
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator_server.config import Config
from orchestrator_server.import_original import import_original
from support.portal import Files
from support.servers import services
from support.system import server_config

#: A client that is not there.
AWAY: Final = "http://127.0.0.1:9"
#: Too large for the database.
LARGE: Final = b"x" * 100_000

RECORDED = Path(__file__).parents[1] / "data" / "originals" / "v2-server"


class OriginalFolder:
    """A copy of what was recorded, to which a test adds what it needs."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(RECORDED, folder)
        self.folder = folder
        self.database = folder / "server.db"
        self.data = folder / "data"

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Change its database, or look at it."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def add(
        self,
        status: str,
        files: Files | None,
        *,
        dest_id: int | None = None,
        user_id: int = 1,
        service: str = "example",
    ) -> int:
        """A job more; None as files: its folder is missing. Gives its id back."""
        name = str(uuid.uuid4())
        if files is not None:
            (self.data / name).mkdir()
            for file, content in files.items():
                content = content.encode() if isinstance(content, str) else content
                (self.data / name / file).write_bytes(content)
        self.execute(
            "INSERT INTO jobs (user_id, service, status, loc, dest_id) VALUES (?, ?, ?, ?, ?)",
            *(user_id, service, status, f"/srv/orchestrator/server/{name}", dest_id),
        )
        ((id,),) = self.execute("SELECT max(id) FROM jobs")
        return int(id)

    def files(self, job: int) -> Path:
        """Where the files of a job are."""
        ((loc,),) = self.execute("SELECT loc FROM jobs WHERE id = ?", job)
        return self.data / Path(loc).name

    def everything(self) -> dict[str, tuple[int, str]]:
        """Every file and folder of it: when it was changed last, and the digest of its content."""
        return {
            str(path.relative_to(self.folder)): (
                path.stat().st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            )
            for path in (self.folder, *sorted(self.folder.rglob("*")))
        }


def with_large_jobs(folder: Path) -> OriginalFolder:
    """What was recorded, and two jobs with files that are large: 11 Completed, 12 Queued."""
    original = OriginalFolder(folder)
    # A zip may have anything before its beginning.
    result = LARGE + (original.files(1) / "output.zip").read_bytes()
    original.add("completed", {"run.sh": "true", "in": LARGE, "output.zip": result}, dest_id=9)
    original.add("queued", {"run.sh": "true", "in": LARGE})
    return original


def take_over(original: OriginalFolder, config: Config, *clients: str) -> str:
    """Import it; gives back the line that says what was done."""
    return import_original(config, original.database, original.data, clients)


def config_of(tmp_path: Path, clients: Mapping[str, Sequence[str]] | None = None) -> Config:
    """Our settings: services with their clients, or the service `example` at one that is away."""
    named = {"example": [AWAY]} if clients is None else clients
    return server_config(tmp_path / "server", services=services(named))


def rows_of(config: Config, table: str) -> list[sqlite3.Row]:
    """All rows of a table of ours."""
    with contextlib.closing(sqlite3.connect(config.db_path)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608


def jobs_of(config: Config) -> dict[int, sqlite3.Row]:
    """Our jobs by their ids."""
    return {row["id"]: row for row in rows_of(config, "jobs")}


def zip_of(method: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    """A zip of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as writing:
        for name, content in files.items():
            writing.writestr(name, content)
    return packed.getvalue()


def count_of(config: Config) -> int:
    """How many jobs we have; there may be no database yet."""
    if not config.db_path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(config.db_path)) as connection:
        if not connection.execute("SELECT * FROM sqlite_master").fetchall():
            return 0
        (jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        return int(jobs)
