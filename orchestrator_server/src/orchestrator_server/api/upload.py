"""1, upload: files, a user and a service become a Queued job that nothing can lose."""

import asyncio
import logging
import re
from typing import Any, Final

from aiohttp import hdrs, web

from orchestrator_server.api.describe import describe
from orchestrator_server.api.parameters import MOST
from orchestrator_server.api.record import json_answer, status_header, summary
from orchestrator_server.keys import CONFIG, FILES, JOBS, RECORDS, ROOM, SENDER
from orchestrator_server.store.job import Job
from orchestrator_shared.errors import BadUpload
from orchestrator_shared.portal import UploadedSchema
from orchestrator_shared.protocol import service_name
from orchestrator_shared.uploads import Upload, receive_upload

log = logging.getLogger(__name__)

H_KEY: Final = "Idempotency-Key"
REF_LIMIT: Final = 200
KEY_LIMIT: Final = 255

_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "in": "formData",
        "name": "file",
        "type": "file",
        "required": True,
        "description": "A file of the job; repeat it for more. One of them is run.sh. Any field "
        "that has a file name counts.",
    },
    {
        "in": "formData",
        "name": "user_id",
        "type": "integer",
        "required": True,
        "minimum": 0,
        "maximum": MOST,
        "description": "Whom the job is for.",
    },
    {
        "in": "formData",
        "name": "service",
        "type": "string",
        "required": True,
        "description": "The kind of job.",
    },
    {
        "in": "formData",
        "name": "ref",
        "type": "string",
        "maxLength": REF_LIMIT,
        "description": "The portal's own name for the job.",
    },
    {
        "in": "header",
        "name": H_KEY,
        "type": "string",
        "maxLength": KEY_LIMIT,
        "description": "A repeat with the same key gets the first job back.",
    },
]


@describe(
    "jobs",
    "Upload a job",
    ok={
        201: ("It is queued, and on disk.", UploadedSchema),
        200: ("It was uploaded before with this Idempotency-Key.", UploadedSchema),
    },
    errors={
        400: "A field, a file or its name is missing or cannot be used, or the service unknown.",
        408: "No byte came for too long.",
        409: "The Idempotency-Key was used for other files or another service.",
        413: "The files are larger than MAX_UPLOAD_SIZE in sum.",
        422: "A part does not have the SHA-256 of its Repr-Digest.",
        507: "There is no room on the disk.",
    },
    consumes=["multipart/form-data"],
    parameters=_PARAMETERS,
)
async def upload(request: web.Request) -> web.Response:
    """POST /upload."""
    job, new = await receive(request)
    return json_answer(summary(request, job), 201 if new else 200, uploaded_headers(job))


async def receive(request: web.Request) -> tuple[Job, bool]:
    """The job that an upload makes, or made before, and whether it is new.

    Raises:
        BadUpload: a field, a file or its name is missing or cannot be used.
        OrchestratorError: it is too large, arrived damaged, or its key was used for another.
        NoSpace, OSError: there is no room on the disk.
    """
    config, files = request.app[CONFIG], request.app[FILES]
    key = _idempotency_key(request)
    request.app[ROOM].check()
    received = await receive_upload(request, files.tmp, config.max_upload_size)
    try:
        return await _insert(request, received, key)
    finally:
        if received.folder is not None:
            await asyncio.to_thread(received.discard)


def uploaded_headers(job: Job) -> dict[str, str]:
    """The headers of the answer to an upload."""
    return {hdrs.LOCATION: f"/jobs/{job.id}", **status_header(job)}


async def _insert(request: web.Request, received: Upload, key: str | None) -> tuple[Job, bool]:
    """Make the files durable, then the record: only then is the upload answered."""
    files, records = request.app[FILES], request.app[RECORDS]
    user_id, service, ref = _fields(request, received)
    folder = files.new_folder()
    kept = False
    try:
        if received.folder is not None:
            await asyncio.to_thread(files.keep_input, received, folder)
        job, new = await request.app[JOBS].insert(
            received,
            user_id=user_id,
            service=service,
            ref=ref,
            folder=folder,
            key=key,
            then=request.app[SENDER].plans([service]),
        )
        kept = new
        return job, new
    except asyncio.CancelledError:
        # The commit may still come; what no record owns in the end, the Cleaner finds.
        kept = True
        raise
    finally:
        # After a commit that failed, only a new look can tell whether the record is there.
        if not kept and received.folder is not None and not await records.owns(folder):
            await asyncio.to_thread(files.remove, folder)


def _fields(request: web.Request, received: Upload) -> tuple[int, str, str | None]:
    """user_id, service and ref of an upload.

    Raises:
        BadUpload: one is missing or cannot be used.
    """
    services = request.app[CONFIG].services
    found = received.fields
    if not received.files:
        raise BadUpload(problem="it has no file")
    for name in ("user_id", "service"):
        if name not in found:
            raise BadUpload(problem=f"the field '{name}' is missing")
    user = found["user_id"].strip()
    if not re.fullmatch(r"[0-9]{1,19}", user) or int(user) > MOST:
        raise BadUpload(problem=f"user_id is a number from 0 to {MOST}, not '{user[:40]}'")
    service = service_name(found["service"])
    if service not in services:
        known = ", ".join(sorted(services)) or "none is set up"
        raise BadUpload(problem=f"there is no service '{service[:40]}' here ({known})")
    ref = found.get("ref")
    if ref is not None and len(ref) > REF_LIMIT:
        raise BadUpload(problem=f"ref has {len(ref)} characters, the limit is {REF_LIMIT}")
    return int(user), service, ref


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get(H_KEY)
    if key is not None and not (1 <= len(key) <= KEY_LIMIT and key.isprintable()):
        raise BadUpload(problem=f"{H_KEY} has 1 to {KEY_LIMIT} printable characters")
    return key
