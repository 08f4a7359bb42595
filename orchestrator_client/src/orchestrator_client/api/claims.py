"""Who asks, and for what: the headers of a server."""

import math

from aiohttp import web

from orchestrator_client.keys import IDENTITY, PAYLOADS, RUNNER
from orchestrator_client.payloads import Payload
from orchestrator_client.workdir import Claim
from orchestrator_shared.errors import (
    DamagedOnTheWay,
    Misdirected,
    NotFound,
    NotUsable,
    OtherProtocol,
)
from orchestrator_shared.messages import encode_message
from orchestrator_shared.protocol import (
    H_ATTEMPT,
    H_CHECK,
    H_INSTANCE,
    H_JOB,
    H_LIMIT,
    H_PROTOCOL,
    H_SERVER,
    H_SERVICE,
    PROTOCOL,
    claim_check,
    service_name,
)


def read_claim(request: web.Request) -> Claim:
    """What a request says of the server, the job and the attempt that it is about.

    Raises:
        DamagedOnTheWay: it does not have the check that it came with.
        Misdirected: it is meant for another client.
        NotUsable: it names a job without the rest.
        OtherProtocol: it speaks another protocol.
    """
    headers = request.headers
    if headers.get(H_PROTOCOL, str(PROTOCOL)) != str(PROTOCOL):
        raise OtherProtocol(theirs=headers[H_PROTOCOL], own=PROTOCOL)
    if (check := headers.get(H_CHECK)) is not None:
        named = [headers.get(name, "") for name in (H_SERVER, H_JOB, H_ATTEMPT, H_SERVICE)]
        if check != claim_check(*named, *request.match_info.values()):
            raise DamagedOnTheWay(what="The head of the request")
    own = request.app[IDENTITY].instance
    if (wanted := headers.get(H_INSTANCE, own)) != own:
        raise Misdirected(instance=own, wanted=wanted)
    job, attempt = _number(request, H_JOB), _number(request, H_ATTEMPT)
    server = headers.get(H_SERVER, "")
    if (job is None) != (attempt is None) or (job is not None and not server):
        raise NotUsable(problem=f"{H_SERVER}, {H_JOB} and {H_ATTEMPT} go together")
    service = service_name(headers.get(H_SERVICE, ""))
    return Claim(server, job, attempt, service, _seconds(request, H_LIMIT))


def find_payload(request: web.Request) -> Payload:
    """The payload in the path, if it is the attempt that the server asks for.

    Raises:
        NotFound: there is none, or it is another job's.
    """
    claim = read_claim(request)
    payload = request.app[PAYLOADS].get(int(request.match_info["id"]))
    asked = (claim.server, claim.job, claim.attempt)
    if claim.job is not None and asked != (payload.server, payload.job, payload.attempt):
        raise NotFound("payload", payload.id)
    return payload


def payload_answer(request: web.Request, payload: Payload, status: int = 200) -> web.Response:
    """A payload as JSON."""
    loc = request.app[RUNNER].workdir(payload.id).job
    shown = encode_message(payload.shown(loc))
    return web.Response(body=shown, content_type="application/json", status=status)


def check_number(name: str, number: int) -> None:
    """Refuse a number that the index cannot hold.

    Raises:
        NotUsable: that is so.
    """
    if not 0 <= number < 2**63:
        raise NotUsable(problem=f"{name} is not between 0 and {2**63 - 1}")


def check_limit(limit_s: float | None) -> float | None:
    """Refuse a limit that nothing can keep.

    Raises:
        NotUsable: that is so.
    """
    if limit_s is not None and not 0 < limit_s < math.inf:
        raise NotUsable(problem=f"{limit_s} seconds are no limit")
    return limit_s


def _seconds(request: web.Request, name: str) -> float | None:
    text = request.headers.get(name)
    try:
        return check_limit(float(text) if text is not None else None)
    except ValueError:
        raise NotUsable(problem=f"the header {name} is no number") from None


def _number(request: web.Request, name: str) -> int | None:
    text = request.headers.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise NotUsable(problem=f"the header {name} is no number")
    check_number(name, int(text))
    return int(text)
