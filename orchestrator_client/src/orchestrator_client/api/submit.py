"""3, send: a job arrives as a request of its own."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from orchestrator_client.api.claims import payload_answer, read_claim
from orchestrator_client.keys import CONFIG, INTAKE
from orchestrator_shared.answers import answer
from orchestrator_shared.errors import BadUpload, OlderAttempt
from orchestrator_shared.protocol import H_ATTEMPT
from orchestrator_shared.uploads import Upload, receive_upload, write_inline


async def submit(request: web.Request) -> web.Response:
    """POST /submit; 409 names the attempt that is held, where that is why."""
    claim = read_claim(request)
    upload = await receive_upload(request, request.app[CONFIG].data_path / "tmp", sys.maxsize)
    try:
        if not upload.files:
            raise BadUpload(problem="it has no file")
        payload = await request.app[INTAKE].take(claim, lambda folder: place(upload, folder))
    except OlderAttempt as error:
        return answer(409, str(error), headers={H_ATTEMPT: str(error.details["held"])})
    finally:
        await asyncio.to_thread(upload.discard)
    return payload_answer(request, payload)


def place(upload: Upload, folder: str) -> None:
    """Put the files of an upload into a new folder."""
    if upload.folder is not None:
        upload.folder.rename(folder)
    else:
        Path(folder).mkdir(mode=0o700)
        write_inline(folder, ((f.name, f.size) for f in upload.files), upload.body or b"")
