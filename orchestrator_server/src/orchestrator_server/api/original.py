"""Portals that were written for version 2 of the original (API_COMPAT=v2).

They upload and download. That server knows the states that ours has, by the same names, and says
each of them with 200.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from orchestrator_server.api import download, upload
from orchestrator_server.api.parameters import read_id
from orchestrator_server.api.record import job_answer
from orchestrator_server.keys import RECORDS
from orchestrator_shared.answers import Handler


@web.middleware
async def answer_v2(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer uploads and downloads in its way, and all the rest as ever."""
    return await _ANSWERS.get(request.match_info.handler, handler)(request)


async def _upload(request: web.Request) -> web.Response:
    job, new = await upload.receive(request)
    answer = job_answer(201 if new else 200, job)
    answer.headers.update(upload.uploaded_headers(job))
    return answer


async def _download(request: web.Request) -> web.StreamResponse:
    answer = await download.download(request)
    if answer.status == 202:
        answer.set_status(200)
    elif answer.status == 204:
        # It has ended, and has no other end than that: no matter that it is looked at again.
        return job_answer(200, await request.app[RECORDS].get(read_id(request)))
    return answer


#: What is answered in the place of our own handlers.
_ANSWERS: Final[Mapping[Handler, Handler]] = {
    upload.upload: _upload,
    download.download: _download,
}
