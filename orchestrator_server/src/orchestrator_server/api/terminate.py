"""Ending a job, and removing its files, on request."""

from aiohttp import web

from orchestrator_server.api.describe import JOB_ID, describe
from orchestrator_server.api.parameters import Query, read_id, read_query
from orchestrator_server.api.record import job_answer
from orchestrator_server.keys import CLEANER, JOBS, POOL, RECORDS, TERMINATOR
from orchestrator_shared.errors import AlreadyEnded
from orchestrator_shared.portal import AnswerSchema
from orchestrator_shared.status import TERMINAL, Status


@describe(
    "jobs",
    "End a job",
    query=Query,
    ok={
        200: ("It is Killed.", AnswerSchema),
        202: ("Its client has not decided yet; the wish is kept.", AnswerSchema),
    },
    errors={
        400: "A parameter cannot be used.",
        404: "There is no such job.",
        409: "It had ended before.",
        507: "There is no room on the disk to keep the wish.",
    },
    parameters=[JOB_ID],
)
async def terminate(request: web.Request) -> web.Response:
    """POST /terminate/{id}."""
    query = read_query(request, Query)
    job = await request.app[TERMINATOR].terminate(read_id(request), query.get("user_id"))
    if job.status is Status.KILLED:
        return job_answer(200, job)
    return job_answer(409 if job.status in TERMINAL else 202, job)


@describe(
    "jobs",
    "End a job if need be, and remove its files",
    query=Query,
    ok={
        200: ("Its files are gone.", AnswerSchema),
        202: ("Its client still has a copy, which goes when it is back.", AnswerSchema),
    },
    errors={
        400: "A parameter cannot be used.",
        404: "There is no such job.",
        507: "There is no room on the disk to keep the wish.",
    },
    parameters=[JOB_ID],
)
async def delete(request: web.Request) -> web.Response:
    """DELETE /jobs/{id}."""
    query = read_query(request, Query)
    id, user_id = read_id(request), query.get("user_id")
    job = await request.app[JOBS].request_delete(id, user_id)
    if job.status not in TERMINAL:
        try:
            job = await request.app[TERMINATOR].terminate(id, user_id)
        except AlreadyEnded:
            job = await request.app[RECORDS].get(id)
    if job.status in TERMINAL:
        await request.app[CLEANER].clean(id, "deleted on request")
        job = await request.app[RECORDS].get(id)
    gone = job.status is Status.CLEANED and not request.app[POOL].has_copy(job)
    return job_answer(200 if gone else 202, job)
