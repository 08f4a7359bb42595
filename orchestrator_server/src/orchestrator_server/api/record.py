"""How a job is shown: its record, its message, and the headers of every answer about it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from orchestrator_server.keys import CONFIG, FILES, POOL
from orchestrator_server.queue.waiting import explain
from orchestrator_server.store.job import Job
from orchestrator_server.store.records import JobDetails
from orchestrator_shared.answers import answer
from orchestrator_shared.protocol import H_JOB_STATUS
from orchestrator_shared.status import TERMINAL, Status

_MESSAGES: Mapping[Status, str] = {
    Status.QUEUED: "The job waits for its turn.",
    Status.PROCESSING: "The job is being sent to a client.",
    Status.SUBMITTED: "A client has the job and starts it as soon as it has a free slot.",
    Status.RUNNING: "The job runs.",
    Status.UNKNOWN: "The job's client or its result cannot be reached just now; it goes on as "
    "soon as they can.",
    Status.COMPLETED: "The job is done and its result can be downloaded.",
    Status.FAILED: "The job failed.",
    Status.INVALID: "The job cannot be run.",
    Status.KILLED: "The job was ended on request.",
    Status.CLEANED: "The job's files have been removed.",
}

#: The last moment of the year 9999 (seconds since 1970): no later one can be written.
_LAST: Final = 253_402_300_799.0


def json_answer(
    values: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer in JSON; that of aiohttp takes three times as long."""
    kind = {"Content-Type": "application/json; charset=utf-8"}
    body = msgspec.json.encode(values)
    return web.Response(body=body, status=status, headers={**kind, **(headers or {})})


def at(time: float | None) -> str | None:
    """Seconds since 1970 as RFC 3339 in UTC."""
    if time is None:
        return None
    return (
        datetime.fromtimestamp(min(time, _LAST), UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def message(job: Job) -> str:
    """A sentence for a person: how the job stands, and why."""
    text = _MESSAGES[job.status]
    if job.status is Status.CLEANED:
        return f"{text[:-1]} ({job.cleaned_because}); it was {job.ended_as}."
    if job.reason:
        text = f"{text[:-1]}: {job.reason.rstrip('.')}."
    if job.kill_requested and job.status not in TERMINAL:
        text += " Its end has been requested."
    return text


def summary(request: web.Request, job: Job) -> dict[str, Any]:
    """What the answer to an upload, and every record, begins with."""
    return {
        "id": job.id,
        "user_id": job.user_id,
        "service": job.service,
        "status": job.status.value,
        "loc": f"{request.app[FILES].jobs}/{job.folder}",
        "dest_id": str(job.payload) if job.payload is not None else "",
        "message": message(job),
    }


def record(request: web.Request, details: JobDetails) -> dict[str, Any]:
    """The record of a job."""
    job = details.job
    config, pool = request.app[CONFIG], request.app[POOL]
    service = config.services.get(job.service)
    max_age = service.max_age if service else config.max_age
    waiting = None
    if details.queue is not None:
        waiting = explain(details, pool.limits(job.service), pool.view(job.service))
    return {
        **summary(request, job),
        "ref": job.ref,
        "version": job.version,
        "created_at": at(job.created_at),
        "started_at": at(job.started_at),
        "ended_at": at(job.ended_at),
        "expires_at": at(job.ended_at + max_age) if job.ended_at is not None else None,
        "attempt": job.attempt,
        "client": job.client,
        "exit_code": job.exit_code,
        "fault": job.fault,
        "reason": job.reason,
        "stderr_tail": job.stderr_tail,
        "wall_s": job.wall_s,
        "cpu_s": job.cpu_s,
        "max_rss": job.max_rss,
        "input_bytes": job.input_bytes,
        "result_bytes": job.result_bytes,
        "kill_requested": bool(job.kill_requested),
        "history": [{**dict(row), "at": at(row["at"])} for row in details.history],
        "waiting": waiting,
    }


def status_header(job: Job) -> dict[str, str]:
    """The header that every answer about a job carries."""
    return {H_JOB_STATUS: job.status.value}


def job_answer(status: int, job: Job) -> web.Response:
    """An answer that says how a job stands."""
    return answer(
        status, message(job), id=job.id, state=job.status.value, headers=status_header(job)
    )
