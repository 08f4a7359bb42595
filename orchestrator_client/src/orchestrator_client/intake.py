"""3 → 4: a submitted job becomes a Prepared payload that a `kill -9` cannot lose."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import astuple

from orchestrator_client.config import Config
from orchestrator_client.identity import Identity
from orchestrator_client.payloads import Payload, Payloads
from orchestrator_client.runner import Runner
from orchestrator_client.standing import Standing
from orchestrator_client.workdir import Claim
from orchestrator_shared.errors import OlderAttempt, OtherService
from orchestrator_shared.folders import check_free_disk

log = logging.getLogger(__name__)

#: How long what is being taken is waited for (seconds): it may have to end an older attempt first.
SETTLE_PATIENCE: Final = 0.5


class Intake:
    """Takes each attempt once: the same one again gets the same payload back."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        payloads: Payloads,
        runner: Runner,
        standing: Standing,
    ) -> None:
        self._config = config
        self._identity = identity
        self._payloads = payloads
        self._runner = runner
        self._standing = standing
        #: What is being taken, by server, job and attempt.
        self._taking: dict[tuple[str, int, int], asyncio.Future[Payload]] = {}

    async def take(
        self, claim: Claim, place: Callable[[str], None], *, few: bool = False
    ) -> Payload:
        """Take an attempt; `place` puts its files into the directory it is given, in a thread, or
        where they are a few kilobytes in `few` files right here: a thread would take longer.

        Raises:
            OlderAttempt: a higher attempt of the job was taken before.
            OtherService: the client does not run jobs of this one.
            NoSpace, Unavailable: there is no room, or the client stops or is out.
            OSError: the files cannot be written.
        """
        if claim.job is None or claim.attempt is None:
            return await self._take_new(claim, place, few, [])
        key = (claim.server, claim.job, claim.attempt)
        if (under_way := self._taking.get(key)) is not None:
            return await asyncio.shield(under_way)
        attempts = self._payloads.attempts(claim.server, claim.job)
        for known in attempts:
            if known.attempt == claim.attempt:
                return known
        if attempts and (highest := attempts[-1].attempt or 0) > claim.attempt:
            raise OlderAttempt(job=claim.job, attempt=claim.attempt, held=highest)
        taking = asyncio.ensure_future(self._take_new(claim, place, few, attempts))
        self._taking[key] = taking
        # Not before it is done, even if whoever sent it is gone: the same may come again.
        taking.add_done_callback(lambda _: self._taking.pop(key))
        return await asyncio.shield(taking)

    async def settle(self) -> None:
        """Wait a moment, until what is being taken has been taken or refused."""
        if self._taking:
            await asyncio.wait(self._taking.values(), timeout=SETTLE_PATIENCE)

    async def _take_new(
        self, claim: Claim, place: Callable[[str], None], few: bool, attempts: Iterable[Payload]
    ) -> Payload:
        own = self._config.service
        # Who names no service is no server of ours, and knows this client by its address.
        if own is not None and claim.service not in (own, ""):
            raise OtherService(own=own, service=claim.service)
        self._standing.require_up()
        check_free_disk(self._config.data_path, self._config.min_free_disk)
        for older in attempts:
            # Its server has given it up: no two attempts run at once.
            if not older.has_ended:
                log.info("payload %d is given up for attempt %s of job %s",
                         older.id, claim.attempt, claim.job)  # fmt: skip
                await self._runner.kill(older.id)
                await self._runner.ended(older.id)
        id = self._identity.next_id()
        workdir = self._runner.workdir(id)
        if few:
            workdir.prepare(claim, place)
        else:
            await asyncio.to_thread(workdir.prepare, claim, place)
        payload = self._payloads.insert(id, *astuple(claim))
        self._runner.fill()
        return payload
