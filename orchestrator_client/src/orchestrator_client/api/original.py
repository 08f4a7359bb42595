"""Servers of the original: whoever sends none of our headers (LEGACY_WIRE).

The one module of the client that knows the original's wire. Such a server asks for each payload
twice a second, fails a job for good where its submit is refused, and believes what it is told of a
payload once and for all.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from orchestrator_client.api import health, kill, retrieve, submit
from orchestrator_client.config import LegacyWire
from orchestrator_client.keys import HEALTH, PAYLOADS, RUNNER
from orchestrator_client.payloads import Payload
from orchestrator_client.starting import Starting
from orchestrator_client.workdir import Claim
from orchestrator_shared.answers import Handler
from orchestrator_shared.errors import NotFound, NotUsable, OrchestratorError, Transient
from orchestrator_shared.multipart import read_undecoded_disposition
from orchestrator_shared.protocol import H_PROTOCOL
from orchestrator_shared.status import PayloadStatus, Status

log = logging.getLogger(__name__)

#: It does not say who it is, nor what the payload is to it.
_NOBODY: Final = Claim("", None, None, "")
_ZIP: Final = "application/zip"
#: What else it can be told of a payload without a result; the rest has failed. Of one that waits
#: it hears that it runs: some versions never ask again for one that is Prepared.
_SHOWN: Final[Mapping[PayloadStatus, PayloadStatus]] = {
    PayloadStatus.PREPARED: PayloadStatus.RUNNING,
    PayloadStatus.RUNNING: PayloadStatus.RUNNING,
    PayloadStatus.INVALID: PayloadStatus.INVALID,
    PayloadStatus.KILLED: PayloadStatus.KILLED,
}


class _Payload(Struct, frozen=True, kw_only=True):
    """A payload as it reads it: it needs each of these fields."""

    id: int = 0
    #: Once the bytes of every file.
    input: dict[str, Any] = msgspec.field(default_factory=dict)
    status: str = Status.UNKNOWN
    loc: str = ""
    pid: int = 0
    killed: bool = False


class OriginalServers:
    """Answers as a client of version 2 does."""

    #: The type of a result.
    result_type = _ZIP

    def __init__(self, starting: Starting) -> None:
        self._starting = starting
        #: By our own handler of the route; what is not named is not there.
        self._answers: dict[Handler, Handler] = {
            health.ping: health.ping,
            # It has no such route, and never asks: what sees to it that we live may.
            health.live: health.live,
            health.load: health.load,
            submit.submit: self._submit,
            retrieve.retrieve: self._retrieve,
            **self.additional(),
        }

    def additional(self) -> dict[Handler, Handler]:
        """What version 1 does not have."""
        return {
            health.health: _health,
            kill.kill: _kill,
            retrieve.retrieve_partial: _retrieve_partial,
        }

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer them in their way, and everybody else as ever."""
        if H_PROTOCOL in request.headers:
            return await handler(request)
        instead = self._answers.get(request.match_info.handler)
        if instead is None:
            return web.Response(status=404)
        try:
            return await self._starting.wait(request, instead)
        except (OrchestratorError, OSError) as error:
            if isinstance(error, ConnectionError) or request.writer.output_size > 0:
                raise
            if instead == self._retrieve:
                return self._not_retrieved(int(request.match_info["id"]), error)
            return self._refused(request, error)

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        payload = await submit.receive(request, _NOBODY, read_undecoded_disposition)
        return _payload_answer(request, payload, payload.status)

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        payload = _find(request)
        if payload.status is PayloadStatus.COMPLETED:
            return await retrieve.packed(request, payload, {hdrs.CONTENT_TYPE: self.result_type})
        return self.not_completed(request, payload)

    def not_completed(self, request: web.Request, payload: Payload) -> web.Response:
        """How a payload stands of which there is no result (yet)."""
        shown = _SHOWN.get(payload.status, PayloadStatus.FAILED)
        return _payload_answer(request, payload, shown)

    def _not_retrieved(self, id: int, error: Exception) -> web.Response:
        if isinstance(error, Transient):
            # As at the start: by and by it is known.
            return self.not_known_yet(id)
        if isinstance(error, NotFound):
            return self.not_there(id)
        log.error("the result of payload %d cannot be read: %s", id, error)
        return self.failed(id)

    def not_known_yet(self, id: int) -> web.Response:
        """What has it ask again."""
        return _json(_Payload(id=id, status=PayloadStatus.RUNNING))

    def not_there(self, id: int) -> web.Response:
        """Of a payload that there is not: a 404 would be asked again for ever."""
        return self.failed(id)

    def failed(self, id: int) -> web.Response:
        """What ends its job."""
        return _json(_Payload(id=id, status=PayloadStatus.FAILED))

    def _refused(self, request: web.Request, error: Exception) -> web.Response:
        if isinstance(error, NotFound):
            return self.refusal(404)
        log.warning("%s %s is refused: %s", request.method, request.path, error)
        return self.refusal(400 if isinstance(error, NotUsable) else 500)

    def refusal(self, status: int) -> web.Response:
        """Nothing was done."""
        return _json(_Payload(), status)


class OriginalServersV1(OriginalServers):
    """Answers as a client of version 1 does: the status says it all."""

    result_type = "application/octet-stream"

    def additional(self) -> dict[Handler, Handler]:
        """Nothing."""
        return {}

    def not_completed(self, request: web.Request, payload: Payload) -> web.Response:
        """202 while it goes on, 204 once it has ended."""
        return web.Response(status=204 if payload.has_ended else 202)

    def not_known_yet(self, id: int) -> web.Response:
        """What has it ask again: any other answer ends its job."""
        return web.Response(status=202)

    def not_there(self, id: int) -> web.Response:
        """Its job is Unknown, and never asked for again."""
        return web.Response(status=404)

    def failed(self, id: int) -> web.Response:
        """What ends its job."""
        return web.Response(status=204)

    def refusal(self, status: int) -> web.Response:
        """Nothing was done."""
        return web.Response(status=status)


def original_servers(version: LegacyWire, starting: Starting) -> OriginalServers:
    """What answers servers of this version."""
    return OriginalServersV1(starting) if version is LegacyWire.V1 else OriginalServers(starting)


async def _kill(request: web.Request) -> web.Response:
    await request.app[RUNNER].kill(_find(request).id)
    return web.Response()


async def _retrieve_partial(request: web.Request) -> web.StreamResponse:
    _find(request)
    return await retrieve.retrieve_partial(request)


async def _health(request: web.Request) -> web.Response:
    if request.app[HEALTH].problems():
        return web.Response(status=503)
    return web.json_response({"status": "ok", "database": "ok"})


def _find(request: web.Request) -> Payload:
    """The payload in the path.

    Raises:
        NotFound: there is none, or it is that of a server that says who it is.
    """
    payload = request.app[PAYLOADS].get(int(request.match_info["id"]))
    if payload.job is not None:
        raise NotFound("payload", payload.id)
    return payload


def _payload_answer(request: web.Request, payload: Payload, shown: PayloadStatus) -> web.Response:
    return _json(
        _Payload(
            id=payload.id,
            status=shown,
            loc=request.app[RUNNER].workdir(payload.id).job,
            pid=payload.pid,
            killed=payload.killed,
        )
    )


def _json(payload: _Payload, status: int = 200) -> web.Response:
    body = msgspec.json.encode(payload)
    return web.Response(body=body, content_type="application/json", status=status)
