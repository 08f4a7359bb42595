"""Ending a payload on request."""

from aiohttp import web

from orchestrator_client.api.claims import find_payload, payload_answer
from orchestrator_client.keys import PAYLOADS, RUNNER
from orchestrator_shared.status import PayloadStatus


async def kill(request: web.Request) -> web.Response:
    """POST /kill/{id}: 409 where it had ended before, and that end stands."""
    payload = find_payload(request)
    await request.app[RUNNER].kill(payload)
    payload = request.app[PAYLOADS].get(payload.id)
    stands = payload.status is not PayloadStatus.KILLED and not payload.killed
    return payload_answer(request, payload, 409 if stands else 200)
