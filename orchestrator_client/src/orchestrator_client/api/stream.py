"""The stream: a server follows its payloads, hands over small jobs, and acknowledges ends."""

import hashlib
import logging
import os
from typing import cast

from aiohttp import web

from orchestrator_client.api.claims import check_limit, check_number, read_claim
from orchestrator_client.keys import CLEANER, INTAKE, STOPPING, STREAMS
from orchestrator_client.streams import Stream, close_stream
from orchestrator_client.workdir import Claim
from orchestrator_shared.answers import NO_SPACE
from orchestrator_shared.digests import check_digest
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import (
    DamagedOnTheWay,
    NoSpace,
    NotUsable,
    OlderAttempt,
    OrchestratorError,
    OtherService,
    Transient,
)
from orchestrator_shared.frames import unpack_frame
from orchestrator_shared.messages import Acknowledge, HandBack, List, Refusal, Submit
from orchestrator_shared.multipart import check_name
from orchestrator_shared.protocol import FRAME_LIMIT, H_SERVER, service_name
from orchestrator_shared.small_archive import FEW_FILES
from orchestrator_shared.uploads import split_inline, write_inline

log = logging.getLogger(__name__)


async def stream(request: web.Request) -> web.WebSocketResponse:
    """GET /stream, a WebSocket."""
    server = read_claim(request).server
    if not server:
        raise NotUsable(problem=f"the header {H_SERVER} is missing")
    socket = web.WebSocketResponse(max_msg_size=FRAME_LIMIT, compress=False, timeout=1.0)
    await socket.prepare(request)
    errands = Errands(f"a message of server {server}")

    def hear(stream: Stream, frame: bytes) -> None:
        try:
            message, body = unpack_frame(frame)
        except NotUsable as error:
            # What it was about is lost; on the next stream everything is told again.
            log.warning("server %s: %s: its stream is closed", server, error)
            errands.run(close_stream(socket))
            return
        if isinstance(message, Submit):
            errands.run(_submit(request.app, stream, message, body))
        elif isinstance(message, Acknowledge):
            request.app[CLEANER].acknowledge(server, message.job, message.attempt)
        elif isinstance(message, List):
            stream.tell_all()
        elif isinstance(message, HandBack):
            errands.run(request.app[STOPPING].drain(server))

    await request.app[STREAMS].serve(socket, server, hear)
    return socket


async def _submit(app: web.Application, stream: Stream, submit: Submit, body: bytes) -> None:
    """Take a small job; its state, or why it is refused, goes back on the stream."""
    service = service_name(submit.service)
    claim = Claim(stream.server, submit.job, submit.attempt, service, submit.limit_s)
    files = [(file.name, file.size) for file in submit.files]

    def place(folder: str) -> None:
        os.mkdir(folder, 0o700)  # noqa: PTH102 - see workdir.py
        write_inline(folder, files, body)

    def refuse(error: OrchestratorError) -> None:
        held = error.details["held"] if isinstance(error, OlderAttempt) else None
        stream.say(
            Refusal(
                job=submit.job,
                attempt=submit.attempt,
                transient=isinstance(error, Transient | OtherService | DamagedOnTheWay),
                disk=isinstance(error, NoSpace),
                damaged=isinstance(error, DamagedOnTheWay),
                held=cast(int | None, held),
                message=str(error),
            )
        )

    try:
        check_number("job", submit.job)
        check_number("attempt", submit.attempt)
        check_limit(claim.limit_s)
        _check_files(files, body)
        declared = {file.name: file.sha256 for file in submit.files}
        for name, content in split_inline(files, body):
            check_digest(name, hashlib.sha256(content).hexdigest(), declared[name])
        payload = await app[INTAKE].take(claim, place, few=len(files) <= FEW_FILES)
    except OrchestratorError as error:
        refuse(error)
    except OSError as error:
        full = error.errno in NO_SPACE
        problem = error.strerror or "the disk fails"
        refuse(NoSpace(problem=problem) if full else Transient(problem=problem))
    else:
        stream.tell(payload)


def _check_files(files: list[tuple[str, int]], body: bytes) -> None:
    if not files:
        raise NotUsable(problem="it has no file")
    if sum(size for _, size in files) != len(body):
        raise NotUsable(problem="its files do not have the sizes that it names")
    if len({name for name, _ in files}) < len(files):
        raise NotUsable(problem="two of its files have the same name")
    for name, _ in files:
        if check_name(name) != name:
            raise NotUsable(problem=f"a file cannot be named '{name}'")
