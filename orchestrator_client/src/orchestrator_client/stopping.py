"""What the client gives up, and when: as it stops (ON_STOP), is drained, or is out."""

import asyncio
import contextlib
import logging
from typing import Final

from orchestrator_client.config import Config, OnStop
from orchestrator_client.intake import Intake
from orchestrator_client.payloads import Payloads
from orchestrator_client.runner import Runner
from orchestrator_client.standing import Standing
from orchestrator_client.streams import Streams
from orchestrator_client.verdict import STOPPED
from orchestrator_shared.errors import OrchestratorError
from orchestrator_shared.status import PayloadStatus

log = logging.getLogger(__name__)

#: How long what is handed back may take to end after SIGTERM (seconds).
GRACE: Final = 1.5
#: How long its end, and what servers answer to it, is waited for (seconds): the stop as a whole is
#: to take no more than 5 s.
PATIENCE: Final = 3.0
#: How often it is looked whether a stream has gone, or somebody is in a hurry (seconds).
LOOK: Final = 0.5


class Stopping:
    """Hands payloads back, so that their servers send them elsewhere, or again later."""

    def __init__(
        self,
        config: Config,
        payloads: Payloads,
        runner: Runner,
        intake: Intake,
        streams: Streams,
        standing: Standing,
    ) -> None:
        self._config = config
        self._payloads = payloads
        self._runner = runner
        self._intake = intake
        self._streams = streams
        self._standing = standing
        self._changed = asyncio.Event()

    async def drain(self, server: str) -> None:
        """Hand back what is Prepared of a server; what runs, runs on."""
        await self._intake.settle()
        await self._hand_back(PayloadStatus.PREPARED, "the client is drained", server)

    async def clear(self) -> None:
        """Hand back what is Prepared: this machine is not fit for it."""
        await self._hand_back(PayloadStatus.PREPARED, self._standing.why)

    async def wind_down(self, hurry: asyncio.Event) -> None:
        """What comes before the stop; `hurry`: nobody wants to wait for what runs any more."""
        if self._config.on_stop is OnStop.LEAVE:
            return
        self._standing.leave()
        await self._intake.settle()
        await self._hand_back(PayloadStatus.PREPARED, STOPPED)
        if self._config.on_stop is OnStop.FINISH:
            log.info("waiting for what runs: %d", self._payloads.active())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.stop_grace):
                    await self._settled(hurry)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._hand_back(PayloadStatus.RUNNING, STOPPED)
                await self._settled(asyncio.Event())

    def on_change(self) -> None:
        """A payload has changed."""
        self._changed.set()

    async def _hand_back(self, status: PayloadStatus, why: str, server: str | None = None) -> None:
        """All that are in this state; of those of one server, if it is named.

        But for those whose server does not say who it is: it could not send them again.
        """
        grace = min(GRACE, self._config.kill_grace)
        work = [
            self._runner.hand_back(payload.id, why, grace)
            for payload in self._payloads.with_status(status)
            if payload.job is not None and server in (None, payload.server)
        ]
        for failure in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(failure, OrchestratorError):
                log.warning("a payload could not be handed back: %s", failure)
            elif isinstance(failure, Exception):
                log.error("a payload could not be handed back", exc_info=failure)

    async def _settled(self, hurry: asyncio.Event) -> None:
        """Wait until nothing is under way, or until somebody is in a hurry."""
        while self._under_way() and not hurry.is_set():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._changed.wait()

    def _under_way(self) -> bool:
        """Whether something runs, or a server that is there has not acknowledged an end yet."""
        return self._payloads.active() > 0 or any(
            self._payloads.unacknowledged(server) for server in self._streams.servers
        )
