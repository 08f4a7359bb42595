"""How clients and services stand."""

import time
from typing import Any

from aiohttp import web

from orchestrator_server.api.describe import describe
from orchestrator_server.api.record import at
from orchestrator_server.config import Service
from orchestrator_server.keys import CONFIG, OPERATOR, POOL, RECORDS
from orchestrator_server.store.records import ServiceState
from orchestrator_shared.portal import ClientsSchema, ServicesSchema


@describe(
    "operating",
    "Every client, and why it takes no jobs where that is so",
    ok={200: ("The clients, in the order of the settings.", ClientsSchema)},
    errors={},
)
async def clients(request: web.Request) -> web.Response:
    """GET /clients."""
    rows = await request.app[OPERATOR].clients()
    shown = [{**row, "last_seen": at(row["last_seen"])} for row in rows]
    return web.json_response({"clients": shown})


@describe(
    "operating",
    "Every service: its jobs, clients and limits",
    ok={200: ("The services of the settings, and those that have jobs yet.", ServicesSchema)},
    errors={},
)
async def services(request: web.Request) -> web.Response:
    """GET /services."""
    configured = request.app[CONFIG].services
    states = await request.app[RECORDS].service_states(list(configured))
    shown = [_service(request, state, configured.get(state.service)) for state in states]
    return web.json_response({"services": shown})


def _service(
    request: web.Request, state: ServiceState, configured: Service | None
) -> dict[str, Any]:
    pool, oldest = request.app[POOL], state.oldest_queued
    view, limits = pool.view(state.service), pool.limits(state.service)
    return {
        "service": state.service,
        "jobs": state.jobs,
        "oldest_queued": at(oldest),
        "oldest_queued_s": round(max(0.0, time.time() - oldest), 3) if oldest else None,
        "clients": len(configured.clients) if configured else 0,
        "clients_up": len(view.reachable),
        "slots": sum(offer.slots for offer in view.offers),
        "runs_per_user": limits.runs_per_user,
        "max_runs": limits.max_runs,
        "max_attempts": configured.max_attempts if configured else None,
        "max_runtime": configured.max_runtime if configured else None,
        "max_age": configured.max_age if configured else None,
    }
