"""Whether the server lives, and whether it is well."""

from aiohttp import web

from orchestrator_server.api.describe import describe
from orchestrator_server.keys import HEALTH
from orchestrator_shared.portal import LiveSchema, PongSchema, ServerHealthSchema


@describe("health", "Ping", ok={200: ("pong", PongSchema)}, errors={})
async def ping(_request: web.Request) -> web.Response:
    """GET /."""
    return web.json_response({"message": "pong"})


@describe("health", "Whether the process turns", ok={200: ("It does.", LiveSchema)}, errors={})
async def live(_request: web.Request) -> web.Response:
    """GET /live."""
    return web.json_response({"status": "live"})


@describe(
    "health",
    "Whether the server is well",
    ok={200: ("It is.", ServerHealthSchema), 503: ("What is wrong.", ServerHealthSchema)},
    errors={},
)
async def health(request: web.Request) -> web.Response:
    """GET /health."""
    report = await request.app[HEALTH].report()
    return web.json_response(report, status=503 if report["problems"] else 200)


@describe("health", "To this page", ok={302: ("It is at /swagger-ui/.", None)}, errors={})
async def to_swagger(_request: web.Request) -> web.StreamResponse:
    """GET /swagger."""
    raise web.HTTPFound("/swagger-ui/")
