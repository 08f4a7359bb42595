"""The start: what lies on the disk is taken up, and nobody is answered before that."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from orchestrator_client.packers import Packers
from orchestrator_shared.answers import Handler
from orchestrator_shared.errors import Unavailable
from orchestrator_shared.protocol import LIVE

log = logging.getLogger(__name__)

#: How long the program waits for it before it listens (seconds). It may take minutes, as after a
#: reboot each result is read; by then callers are to hear that it starts, and a signal is obeyed.
PATIENCE: Final = 1.0
#: What is answered at any time.
ALWAYS: Final = frozenset({"/", LIVE})


class Starting:
    """Rebuilds the index in a thread, then begins what works with it."""

    def __init__(self, rebuild: Callable[[], None], begin: Callable[[], Awaitable[None]]) -> None:
        self._rebuild = rebuild
        self._begin = begin
        self._thread = Packers()
        self._task: asyncio.Task[None] | None = None

    async def start(self, _app: web.Application) -> None:
        """Start, or be about to: an on_startup hook."""
        self._task = asyncio.create_task(self._run(), name="start")
        done, _ = await asyncio.wait({self._task}, timeout=PATIENCE)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """What is not done yet is done at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @web.middleware
    async def wait(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer nothing of payloads before they are known."""
        if request.path not in ALWAYS:
            if self._task is None or not self._task.done():
                raise Unavailable(problem="this client is starting")
            # What went wrong is everybody's answer.
            self._task.result()
        return await handler(request)

    async def _run(self) -> None:
        try:
            await self._thread.do(self._rebuild)
            await self._begin()
        except Exception:
            log.exception("the client cannot take up what lies on its disk")
            raise
        finally:
            self._thread.close()
