"""Ending a payload on request."""

from aiohttp import web

from orchestrator_client.api.claims import find_payload, payload_answer
from orchestrator_client.keys import PAYLOADS, RUNNER


async def kill(request: web.Request) -> web.Response:
    """POST /kill/{id}: 409 where it had ended before, and that end stands."""
    id = find_payload(request).id
    killed = await request.app[RUNNER].kill(id)
    return payload_answer(request, request.app[PAYLOADS].get(id), 200 if killed else 409)
