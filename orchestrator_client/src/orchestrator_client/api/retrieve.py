"""5, get: a payload's state, its result, or its working directory as it is now."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from aiohttp import web

from orchestrator_client.api.claims import find_payload, payload_answer
from orchestrator_client.keys import RUNNER
from orchestrator_client.payloads import Payload
from orchestrator_shared.archive import in_thread, zip_directory
from orchestrator_shared.errors import NotFound
from orchestrator_shared.protocol import H_JOB_STATUS
from orchestrator_shared.sealed import Sealed, answer_sealed
from orchestrator_shared.status import PayloadStatus


async def retrieve(request: web.Request) -> web.StreamResponse:
    """GET, HEAD /retrieve/{id}."""
    payload = find_payload(request)
    if payload.status is PayloadStatus.COMPLETED:
        return await packed(request, payload)
    if not payload.has_ended:
        return payload_answer(request, payload, 202)
    return web.Response(status=204, headers={H_JOB_STATUS: payload.status})


async def result(request: web.Request) -> web.StreamResponse:
    """GET, HEAD /result/{id}: what was packed of a payload, whatever its end."""
    payload = find_payload(request)
    if payload.result_size is None or payload.status is PayloadStatus.CLEANED:
        raise NotFound("result of payload", payload.id)
    return await packed(request, payload)


async def retrieve_partial(request: web.Request) -> web.StreamResponse:
    """GET /retrieve_partial/{id}."""
    payload = find_payload(request)
    if payload.status is PayloadStatus.CLEANED:
        raise NotFound("working directory of payload", payload.id)
    if payload.has_ended and payload.result_size is not None:
        return await packed(request, payload)
    workdir = request.app[RUNNER].workdir(payload.id)
    response = web.StreamResponse()
    response.content_type = "application/zip"
    await response.prepare(request)
    if request.method != "HEAD":
        make = partial(zip_directory, Path(workdir.job), workdir.logs(None), live=True)
        async for chunk in in_thread(make):
            await response.write(chunk)
    await response.write_eof()
    return response


async def packed(
    request: web.Request, payload: Payload, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """What was packed of a payload.

    Raises:
        NotFound: it is not there any more.
        OSError: it cannot be read.
    """
    path = Path(request.app[RUNNER].workdir(payload.id).result)
    sealed = Sealed(path, payload.result_size or 0, payload.result_sha256 or "")
    try:
        return await answer_sealed(request, sealed, headers or {})
    except FileNotFoundError as error:
        raise NotFound("result of payload", payload.id) from error
