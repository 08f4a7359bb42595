"""A server with handlers of the test's own, behind the middleware that all of ours have."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from orchestrator_shared.answers import errors_become_answers
from support.portal import Portal

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[Portal]:
    """A caller of a server that answers GET and HEAD of `/` with this handler."""
    app = web.Application(middlewares=[errors_become_answers])
    app.router.add_get("/", handler)
    server = TestServer(app)
    await server.start_server(shutdown_timeout=1)
    async with aiohttp.ClientSession() as session:
        try:
            yield Portal(server.make_url(""), session)
        finally:
            await server.close()
