"""The stream: a server follows its payloads, hands over small jobs, and acknowledges ends."""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from aiohttp import web

from orchestrator_client.api.claims import read_claim
from orchestrator_client.keys import CLEANER, INTAKE, STREAMS
from orchestrator_client.streams import Stream
from orchestrator_client.workdir import Claim
from orchestrator_shared.answers import NO_SPACE
from orchestrator_shared.errors import NoSpace, NotUsable, OrchestratorError, Transient
from orchestrator_shared.frames import pack_frame, unpack_frame
from orchestrator_shared.multipart import check_name
from orchestrator_shared.protocol import FRAME_LIMIT, H_SERVER, service_name
from orchestrator_shared.uploads import write_inline

log = logging.getLogger(__name__)


async def stream(request: web.Request) -> web.WebSocketResponse:
    """GET /stream, a WebSocket."""
    server = read_claim(request).server
    if not server:
        raise NotUsable(problem=f"the header {H_SERVER} is missing")
    socket = web.WebSocketResponse(max_msg_size=FRAME_LIMIT, compress=False, timeout=1.0)
    await socket.prepare(request)
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def hear(stream: Stream, frame: bytes) -> None:
        try:
            kind, header, body = unpack_frame(frame)
        except NotUsable as error:
            log.warning("server %s: %s", server, error)
            return
        if kind == "submit":
            spawn(_submit(request.app, stream, header, body))
        elif kind == "acknowledge":
            cleaner = request.app[CLEANER]
            spawn(cleaner.acknowledge(server, header["job"], header["attempt"]))

    await request.app[STREAMS].serve(socket, server, hear)
    return socket


async def _submit(
    app: web.Application, stream: Stream, header: dict[str, Any], body: bytes
) -> None:
    """Take a small job; its state, or why it is refused, goes back on the stream."""
    claim = Claim(stream.server, header["job"], header["attempt"], service_name(header["service"]))
    files = [(file["name"], file["size"]) for file in header["files"]]

    def place(folder: Path) -> None:
        folder.mkdir(mode=0o700)
        write_inline(folder, files, body)

    def refuse(error: OrchestratorError) -> None:
        refusal = {
            "job": header["job"],
            "attempt": header["attempt"],
            "transient": isinstance(error, Transient),
            "disk": isinstance(error, NoSpace),
            "message": str(error),
        }
        stream.say(pack_frame("refused", refusal))

    try:
        if sum(size for _, size in files) != len(body):
            raise NotUsable(problem="its files do not have the sizes that it names")
        for name, _ in files:
            if check_name(name) != name:
                raise NotUsable(problem=f"a file cannot be named '{name}'")
        payload = await app[INTAKE].take(claim, place)
    except OrchestratorError as error:
        refuse(error)
    except OSError as error:
        full = error.errno in NO_SPACE
        problem = error.strerror or "the disk fails"
        refuse(NoSpace(problem=problem) if full else Transient(problem=problem))
    else:
        stream.tell(payload)
