"""3, send: a job arrives as a request of its own."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from orchestrator_client.api.claims import payload_answer, read_claim
from orchestrator_client.keys import CONFIG, INTAKE
from orchestrator_client.payloads import Payload
from orchestrator_client.workdir import Claim
from orchestrator_shared.answers import answer
from orchestrator_shared.errors import BadUpload, OlderAttempt
from orchestrator_shared.multipart import read_disposition
from orchestrator_shared.protocol import H_ATTEMPT
from orchestrator_shared.uploads import ReadDisposition, Upload, receive_upload, write_inline


async def submit(request: web.Request) -> web.Response:
    """POST /submit; 409 names the attempt that is held, where that is why."""
    claim = read_claim(request)
    try:
        payload = await receive(request, claim)
    except OlderAttempt as error:
        return answer(409, str(error), headers={H_ATTEMPT: str(error.details["held"])})
    return payload_answer(request, payload)


async def receive(
    request: web.Request, claim: Claim, read: ReadDisposition = read_disposition
) -> Payload:
    """Take the attempt whose files a request brings; `read` finds the name of each.

    Raises:
        OrchestratorError: it cannot be used, or is not taken.
        OSError: the disk is full, or cannot be written.
    """
    folder = request.app[CONFIG].data_path / "tmp"
    upload = await receive_upload(request, folder, sys.maxsize, read=read)
    try:
        if not upload.files:
            raise BadUpload(problem="it has no file")
        return await request.app[INTAKE].take(claim, lambda folder: place(upload, folder))
    finally:
        await asyncio.to_thread(upload.discard)


def place(upload: Upload, folder: str) -> None:
    """Put the files of an upload into a new folder."""
    if upload.folder is not None:
        upload.folder.rename(folder)
    else:
        Path(folder).mkdir(mode=0o700)
        write_inline(folder, ((f.name, f.size) for f in upload.files), upload.body or b"")
