"""`orch-server import-legacy DB DATA`: the jobs of a stopped server of the original become ours.

First all of them are looked at, and what cannot be taken over stops the import before anything is
written. Then files are copied and made durable. Then one transaction has all records: whatever
happens before its commit, no job is taken over, and the next import begins anew.
"""

import contextlib
import hashlib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestrator_server.clients.original.identity import instance_of, start_of
from orchestrator_server.config import Config
from orchestrator_server.identity import Found, lock_pair, look, make_pair
from orchestrator_server.original_server import (
    ImportFailed,
    OriginalJob,
    OriginalServer,
    check_stopped,
    read_original,
)
from orchestrator_server.store.connection import connect, unusable
from orchestrator_server.store.files import Files
from orchestrator_server.store.job import Result
from orchestrator_server.store.queries import sql
from orchestrator_server.store.records import one
from orchestrator_server.taking_over import REASON, RESULT, Taken, is_sent, look_at
from orchestrator_shared import settings
from orchestrator_shared.errors import SettingError
from orchestrator_shared.folders import remove_tree
from orchestrator_shared.protocol import INLINE_FILES_LIMIT, INLINE_LIMIT, service_name
from orchestrator_shared.status import Status
from orchestrator_shared.uploads import ReceivedFile, Upload

OWNER: Final = "an import of orch-server"

#: Where a job was that has ended there: a change of states names a client.
_ELSEWHERE: Final = "original"
_ATTEMPT: Final = 1
_CHUNK: Final = 512 * 1024


def import_original(config: Config, database: Path, data: Path, clients: Sequence[str]) -> str:
    """Take over the jobs of an original server; gives back a line that says what was done.

    `data` is the folder where their files are now, `clients` says as SERVICE=URL where the jobs
    of a service are that were sent.

    Raises:
        ImportFailed: the original is in use or cannot be read, or a job of it cannot be taken over.
        SettingError: a path cannot be used, a server runs on it, or a client is not known.
        PairBroken: our database and DATA_PATH do not belong together.
        StoreUnusable: our database is damaged, of a newer version, or cannot be written.
    """
    named = dict(map(_named_client, clients))
    if len(named) < len(clients):
        raise SettingError(setting="--client", problem="it names a service twice")
    try:
        if not data.is_dir():
            raise ImportFailed(problem=f"{data} is not a folder")
        check_stopped(database)
        found, locks = lock_pair(config, OWNER, look)
        with locks:
            scratch = config.db_path.with_name(config.db_path.name + ".import")
            original = read_original(database, scratch)
            return _import(config, found, original, database, data, named)
    except OSError as error:
        problem = f"{error.filename or config.data_path}: {error.strerror}"
        raise ImportFailed(problem=problem) from error
    except sqlite3.Error as error:
        raise unusable(config.db_path, error) from error


def _named_client(text: str) -> tuple[str, str]:
    service, _, url = text.partition("=")
    try:
        (base,) = settings.urls(url)
        if not service.strip():
            raise ValueError("it names no service")
    except ValueError as error:
        raise SettingError(
            setting="--client", problem=f"'{text}' is not SERVICE=URL, with one URL ({error})"
        ) from error
    return service_name(service), base


def _import(
    config: Config,
    found: Found,
    original: OriginalServer,
    database: Path,
    data: Path,
    named: Mapping[str, str],
) -> str:
    """All of it, under our locks."""
    if found.database is not None:
        # It is there, and may be of an earlier version.
        make_pair(config, found)
    new = _not_taken_yet(config, found, original.jobs)
    skipped = len(original.jobs) - len(new)
    bases = _clients(config, original.jobs, new, named)
    taken = [look_at(job, data) for job in new]
    kept = [job for job in new if job.status != "cleaned"]
    if kept and not any(job.folder(data) for job in kept):
        raise ImportFailed(problem=f"{data} has the folder of none of the jobs in {database}")
    if taken:
        if found.database is None:
            make_pair(config, found)
        _copy_all(Files(config.data_path), taken)
        check_stopped(database)
        _write(config, taken, original, bases)
    states = Counter(job.status.value for job in taken)
    listed = ", ".join(f"{count} {status}" for status, count in states.items())
    return f"{len(taken)} jobs are taken over{f' ({listed})' * bool(taken)}, {skipped} were before"


# --- looking


def _not_taken_yet(config: Config, found: Found, jobs: Iterable[OriginalJob]) -> list[OriginalJob]:
    """Those that no import took over, whatever became of them since.

    Raises:
        ImportFailed: an id is another job's.
    """
    if found.database is None:
        return list(jobs)
    new = []
    with contextlib.closing(connect(config.db_path)) as connection:
        for job in jobs:
            row = one(connection, "where_taken_from", id=job.id)
            if row is None:
                new.append(job)
            elif row["loc"] != job.loc:
                raise ImportFailed(
                    problem=f"the id {job.id} is that of another job here; import into a new "
                    "database and a new folder (DB_PATH, DATA_PATH)"
                )
    return new


def _clients(
    config: Config,
    jobs: Iterable[OriginalJob],
    new: Iterable[OriginalJob],
    named: Mapping[str, str],
) -> dict[str, str]:
    """The base URL of the client of each service, as far as it is known.

    Raises:
        SettingError: it is not, and a job has to be asked for there.
    """
    bases = dict(named)
    for name in {job.service for job in jobs} - named.keys():
        service = config.services.get(name)
        if service is not None and len(service.clients) == 1:
            bases[name] = service.clients[0].base
    for job in new:
        if is_sent(job) and job.service not in bases:
            known = config.services.get(job.service)
            count = "several clients" if known else "no client in the settings"
            raise SettingError(
                setting="--client",
                problem=f"the service '{job.service}' has {count}; say which one has its jobs: "
                f"--client {job.service}=URL",
            )
    return bases


# --- copying


def _copy_all(files: Files, taken: Iterable[Taken]) -> None:
    """Copy what is too large for the database; once this returns it is durable."""
    try:
        with contextlib.ExitStack() as failing:
            for job in taken:
                # An import that was cut off has left it; no record names it.
                files.remove(job.folder)
                failing.callback(files.remove, job.folder)
                _copy(files, job)
            failing.pop_all()
    finally:
        remove_tree(files.tmp)


def _copy(files: Files, taken: Taken) -> None:
    if taken.source is not None and taken.names is not None and not _is_few(taken):
        gathered = files.tmp / "input"
        gathered.mkdir(mode=0o700)
        upload = Upload(folder=gathered)
        for name in taken.names:
            size, sha256 = _copy_file(taken.source / name, gathered / name)
            upload.files.append(ReceivedFile(name, size, sha256))
        files.keep_input(upload, taken.folder)
        taken.input = upload
    if taken.zip is not None and taken.zip.stat().st_size > INLINE_LIMIT:
        size, sha256 = _copy_file(taken.zip, files.tmp / RESULT)
        file = files.keep_result(files.tmp / RESULT, taken.folder, _ATTEMPT)
        taken.result = Result(size, sha256, file, None)


def _is_few(taken: Taken) -> bool:
    """Whether its files are few enough for the database."""
    assert taken.source is not None and taken.names is not None  # noqa: S101
    total = sum((taken.source / name).stat().st_size for name in taken.names)
    return total <= INLINE_LIMIT and len(taken.names) <= INLINE_FILES_LIMIT


def _copy_file(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file; gives back its size and its SHA-256."""
    size, digest = 0, hashlib.sha256()
    with open(source, "rb") as reading, open(target, "xb") as writing:
        while chunk := reading.read(_CHUNK):
            writing.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _read_small(taken: Taken) -> Upload | None:
    """The files of a job that stand in the database; None if it has none."""
    if taken.source is None or taken.names is None:
        return None
    upload, bodies = Upload(), []
    for name in taken.names:
        bodies.append((taken.source / name).read_bytes())
        digest = hashlib.sha256(bodies[-1]).hexdigest()
        upload.files.append(ReceivedFile(name, len(bodies[-1]), digest))
    upload.body = b"".join(bodies)
    return upload


# --- writing


def _write(
    config: Config, taken: Iterable[Taken], original: OriginalServer, bases: Mapping[str, str]
) -> None:
    """All records, in one transaction."""
    now = time.time()
    with contextlib.closing(connect(config.db_path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for job in taken:
            _insert(connection, job, now)
            _change(connection, job, bases.get(job.job.service), now)
        for base, highest in _highest_ids(original.jobs, bases).items():
            values = {"instance": instance_of(base), "highest_id": highest}
            connection.execute(sql("expect_original_ids"), values)
        connection.execute(sql("skip_original_ids"), {"highest_id": original.highest_id})
        connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, taken: Taken, now: float) -> None:
    """The job as it was uploaded, and its files."""
    job, upload = taken.job, taken.input or _read_small(taken)
    values = {
        "id": job.id,
        "user_id": job.user_id,
        "service": job.service,
        "folder": taken.folder,
        "created_at": now if job.created_at is None else job.created_at,
        "input_bytes": upload.total if upload else 0,
        "reason": REASON,
    }
    connection.execute(sql("take_over"), values)
    connection.execute(sql("insert_taken_over"), {"job": job.id, "loc": job.loc})
    if upload is not None:
        manifest = msgspec.json.encode(upload.manifest()).decode()
        values = {"job": job.id, "manifest": manifest, "body": upload.body}
        connection.execute(sql("insert_input"), values)


def _change(connection: sqlite3.Connection, taken: Taken, base: str | None, now: float) -> None:
    """What has become of it at the original, as changes: history and counters have them too."""
    job = taken.job
    if taken.status is Status.QUEUED:
        return
    common: dict[str, Any] = {"id": job.id, "now": now}
    runs = taken.status is Status.RUNNING and base is not None
    instance = instance_of(base) if runs and base else _ELSEWHERE
    one(connection, "process", **common, instance=instance, start=start_of(0) if runs else None,
        client=base if runs else None, reason=REASON)  # fmt: skip
    if runs:
        values = {"instance": instance, "address": base, "now": now}
        connection.execute(sql("expect_client"), values)
        one(connection, "observe", **common, attempt=_ATTEMPT, instance=instance,
            payload=job.dest_id, status=Status.RUNNING.value)  # fmt: skip
        return
    end = Status.FAILED if taken.status is Status.CLEANED else taken.status
    one(connection, "end_taken_over", **common, status=end.value, payload=job.dest_id,
        fault=taken.fault, reason=taken.reason)  # fmt: skip
    if taken.status is Status.CLEANED:
        one(connection, "clean", **common, reason=taken.reason)
    _insert_result(connection, taken)


def _insert_result(connection: sqlite3.Connection, taken: Taken) -> None:
    result = taken.result
    if result is None and taken.zip is not None:
        body = taken.zip.read_bytes()
        result = Result(len(body), hashlib.sha256(body).hexdigest(), None, body)
    if result is not None:
        values = {"job": taken.job.id, **msgspec.structs.asdict(result)}
        connection.execute(sql("insert_result"), values)


def _highest_ids(jobs: Iterable[OriginalJob], bases: Mapping[str, str]) -> dict[str, int]:
    """The highest id that each client gave, as far as the original knows."""
    highest: dict[str, int] = {}
    for job in jobs:
        base = bases.get(job.service)
        if base is not None and job.dest_id is not None:
            highest[base] = max(highest.get(base, 0), job.dest_id)
    return highest
