"""Errors become HTTP answers: the one place that knows which error has which status."""

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from stream_zip import ZipError

from orchestrator_shared import errors
from orchestrator_shared.protocol import H_JOB_STATUS
from orchestrator_shared.status import Status

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: The HTTP status of each kind of error; the first that fits counts.
STATUSES: Mapping[type[Exception], int] = {
    errors.NotUsable: 400,
    errors.Unauthorized: 401,
    errors.NotFound: 404,
    errors.Silent: 408,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.Misdirected: 421,
    errors.DamagedOnTheWay: 422,
    errors.OtherProtocol: 426,
    errors.ClientUnreachable: 502,
    errors.NoSpace: 507,
    errors.Transient: 503,
}

#: What the system says where a disk, a quota or a limit on a file's size is used up.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def answer(
    status: int,
    message: str,
    *,
    id: int = 0,
    state: str = Status.UNKNOWN,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The body that every error has: which job, its state, and what is wrong."""
    body = {"id": id, "status": str(state), "message": message}
    if status == 401:
        # RFC 9110, section 11.6.1.
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    return web.json_response(body, status=status, headers=headers)


def _status_of(error: Exception) -> int:
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)


@web.middleware
async def errors_become_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what the steps raise. What nobody foresaw is a 500, and stands in the log."""
    try:
        return await handler(request)
    except Exception as error:
        if isinstance(error, web.HTTPException) and error.status < 400:
            raise
        response = _answer_to(request, error)
        # An answer has begun, and this one cannot follow it. Only a connection that ends too early
        # tells the other side that what it has is not the whole.
        if request.writer.output_size > 0 and request.transport is not None:
            request.transport.close()
        return response


def _answer_to(request: web.Request, error: Exception) -> web.Response:
    if isinstance(error, web.HTTPException):
        message = f"{error.reason}: {request.method} {request.path} is not offered here."
        if error.status == 416:
            message = "The range lies behind the end of the result."
        kept = {k: v for k, v in error.headers.items() if k in ("Allow", "Content-Range")}
        return answer(error.status, message, headers=kept)
    if isinstance(error, errors.OrchestratorError):
        state = error.subject_status
        return answer(
            _status_of(error),
            str(error),
            id=error.subject_id,
            state=state or Status.UNKNOWN,
            headers={H_JOB_STATUS: state} if state else None,
        )
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        full = errors.NoSpace(problem=error.strerror)
        return answer(_status_of(full), str(full))
    if isinstance(error, ConnectionError):
        # Whoever asked has gone: nobody reads the answer, and nothing is wrong here.
        return answer(400, "The connection was closed by the other side.")
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    if isinstance(error, OSError) and error.strerror:
        return answer(500, f"It failed inside: {error.strerror}. The log has more.")
    if isinstance(error, ZipError):
        return answer(500, "It failed inside: a file changed while it was packed.")
    return answer(500, "It failed inside; the log has more.")
