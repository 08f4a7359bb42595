"""6, download: the result as a zip, or how the job stands."""

import logging
from typing import Any, Final

from aiohttp import hdrs, web

from orchestrator_server.api.describe import JOB_ID, describe
from orchestrator_server.api.parameters import Query, read_id, read_query
from orchestrator_server.api.record import job_answer, status_header
from orchestrator_server.clients.requests import UNREACHABLE
from orchestrator_server.keys import FILES, POOL, RECORDS
from orchestrator_server.store.job import Job
from orchestrator_shared.answers import answer
from orchestrator_shared.errors import ClientUnreachable, OrchestratorError
from orchestrator_shared.portal import AnswerSchema
from orchestrator_shared.sealed import Sealed, answer_sealed
from orchestrator_shared.status import ACTIVE, Status

log = logging.getLogger(__name__)

#: The ends of which the server has stored files.
_STORED: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.KILLED})

_PARAMETERS: Final[list[dict[str, Any]]] = [
    JOB_ID,
    *(
        {"in": "header", "name": name, "type": "string"}
        for name in ("Range", "If-Range", "If-None-Match")
    ),
]


class ResultMissing(OrchestratorError):
    """The result of job {job} should be on disk, but cannot be read. The log has more."""


@describe(
    "results",
    "Download the result of a job",
    query=Query,
    ok={
        200: ("The zip of its working directory.", None),
        202: ("It is not done yet.", AnswerSchema),
        204: ("There is none: Failed, Invalid, Killed or Cleaned (see X-Job-Status).", None),
        206: ("The part of the zip that was asked for (Range).", None),
        304: ("The zip is the one that the caller has (If-None-Match).", None),
    },
    errors={
        400: "A parameter cannot be used.",
        404: "There is no such job.",
        416: "The range lies behind the end.",
    },
    produces=["application/zip", "application/json"],
    parameters=_PARAMETERS,
)
async def download(request: web.Request) -> web.StreamResponse:
    """GET, HEAD /download/{id}."""
    query = read_query(request, Query)
    job = await request.app[RECORDS].get(read_id(request), query.get("user_id"))
    if job.status is Status.COMPLETED:
        return await _stored(request, job)
    if job.status is Status.QUEUED or job.status in ACTIVE:
        return job_answer(202, job)
    return web.Response(status=204, headers=status_header(job))


@describe(
    "results",
    "Download the working directory of a job as it is now",
    query=Query,
    ok={
        200: ("The zip of its working directory.", None),
        204: ("There is none: Queued, Processing, Invalid or Cleaned.", None),
        206: ("The part that was asked for (Range), of a job that has ended.", None),
        304: ("The zip is the one that the caller has (If-None-Match).", None),
    },
    errors={
        400: "A parameter cannot be used.",
        404: "There is no such job.",
        416: "The range lies behind the end.",
        502: "The client that has the job cannot be reached.",
    },
    produces=["application/zip", "application/json"],
    parameters=_PARAMETERS,
)
async def download_partial(request: web.Request) -> web.StreamResponse:
    """GET /download_partial/{id}."""
    query = read_query(request, Query)
    records = request.app[RECORDS]
    job = await records.get(read_id(request), query.get("user_id"))
    if job.status in ACTIVE and job.payload is not None:
        try:
            return await _pass_through(request, job)
        except ClientUnreachable as error:
            job = await records.get(job.id)
            if job.status in ACTIVE:
                raise error.about(job.id, job.status) from error
    if job.status in _STORED:
        return await _stored(request, job)
    return web.Response(status=204, headers=status_header(job))


def _headers(job: Job) -> dict[str, str]:
    return {
        **status_header(job),
        "Content-Disposition": f'attachment; filename="{job.service}-{job.id}.zip"',
    }


async def _stored(request: web.Request, job: Job) -> web.StreamResponse:
    """The result that the server has."""
    result = await request.app[RECORDS].get_result(job.id)
    if result is not None:
        content = result.body
        where = request.app[FILES].result(job.folder, result.file) if result.file else b""
        sealed = Sealed(content if content is not None else where, result.size, result.sha256)
        try:
            return await answer_sealed(request, sealed, _headers(job))
        except web.HTTPRequestRangeNotSatisfiable as error:
            behind = "The range lies behind the end of the result."
            headers = {**status_header(job), hdrs.CONTENT_RANGE: error.headers[hdrs.CONTENT_RANGE]}
            return answer(416, behind, id=job.id, state=job.status, headers=headers)
        except ConnectionError:
            raise
        except OSError as error:
            job = await request.app[RECORDS].get(job.id)
            if job.status is not Status.CLEANED:
                log.error("the result of job %d cannot be read: %s", job.id, error)
                raise ResultMissing(job=job.id).about(job.id, job.status) from error
    return web.Response(status=204, headers=status_header(job))


async def _pass_through(request: web.Request, job: Job) -> web.StreamResponse:
    """What the client streams, chunk by chunk."""
    client = request.app[POOL].at(job.instance)
    if client is None:
        raise ClientUnreachable(client=job.client, problem="it is not there")
    async with client.requests.partial(job) as zipped:
        response = web.StreamResponse(headers=_headers(job))
        response.content_type = "application/zip"
        await response.prepare(request)
        try:
            if request.method != "HEAD":
                async for chunk in zipped:
                    await response.write(chunk)
            await response.write_eof()
        except UNREACHABLE as error:
            log.info("job %d: a download of its directory was cut short: %s", job.id, error)
            # Nobody must take the part for the whole, nor what would follow for its rest.
            if request.transport is not None:
                request.transport.close()
        return response
