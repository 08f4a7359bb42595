"""How the client fares, and how busy its machine is."""

from aiohttp import web

from orchestrator_client.keys import HEALTH, LOAD


async def ping(_request: web.Request) -> web.Response:
    """GET /."""
    return web.json_response({"message": "pong"})


async def live(_request: web.Request) -> web.Response:
    """GET /live."""
    return web.json_response({"status": "live"})


async def load(request: web.Request) -> web.Response:
    """GET /load: a bare number, 0 to 100."""
    return web.json_response(request.app[LOAD].percent())


async def health(request: web.Request) -> web.Response:
    """GET /health."""
    report = request.app[HEALTH].report()
    return web.json_response(report, status=503 if report["problems"] else 200)
