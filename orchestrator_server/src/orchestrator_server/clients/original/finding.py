"""Which clients are of the original."""

from collections.abc import Mapping

import aiohttp

from orchestrator_server.clients.original.client import OriginalClient
from orchestrator_server.clients.original.exchange import find_version
from orchestrator_server.clients.original.identity import Here, instance_of
from orchestrator_server.config import ClientAddress
from orchestrator_server.store.records import Records


class Originals:
    """Finds them out, and begins to follow them."""

    def __init__(self, here: Here, records: Records, limits: Mapping[str, float | None]) -> None:
        """`limits` has for how long an attempt of each service may run (seconds)."""
        self._here = here
        self._records = records
        self._limits = limits
        #: Each that was met, by its address: what it has outlives one stream.
        self._met: dict[str, OriginalClient] = {}

    async def open(
        self, session: aiohttp.ClientSession, address: ClientAddress
    ) -> OriginalClient | None:
        """The client at this address, if it is one of the original.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: nobody answers.
        """
        version = await find_version(session, address.base)
        if version is None:
            return None
        client = self._met.get(address.base)
        if client is None:
            client = OriginalClient(self._here, session, address)
            self._met[address.base] = client
        jobs = await self._records.active_at(instance_of(address.base))
        client.begin(version, jobs, self._limits)
        return client
