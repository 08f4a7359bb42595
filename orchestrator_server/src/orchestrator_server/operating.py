"""What an operator does by hand: clients that are gone or drained, and the end of a pause."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from orchestrator_server.clients.directory import Directory, Known
from orchestrator_server.clients.overview import overview
from orchestrator_server.clients.pool import Pool
from orchestrator_server.store.database import Database
from orchestrator_server.store.queries import sql
from orchestrator_server.store.records import Records
from orchestrator_server.tasks.losses import Patience
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import Conflict

log = logging.getLogger(__name__)

#: The key in the table meta under which a restore leaves that the server has to be paused (`1`),
#: and afterwards that its clients have not told yet what they have (`settling`).
PAUSED: Final = "paused"


class StillThere(Conflict):
    """The client {name} answers, so it is not gone. To send it nothing new, drain it."""


class NotPaused(Conflict):
    """The server is not paused"""


class Operator:
    """The commands of `orch-server client …` and `orch-server resume`, at the running server.

    Each gives back a line for whoever typed it.
    """

    def __init__(
        self,
        database: Database,
        records: Records,
        pool: Pool,
        directory: Directory,
        patience: Patience,
        look: Callable[[], None],
    ) -> None:
        """`look` is called when jobs may go that could not before."""
        self.paused = False
        self._database = database
        self._records = records
        self._pool = pool
        self._directory = directory
        self._patience = patience
        self._look = look
        self._errands = Errands("the end of a restore")

    async def start(self) -> None:
        """Begin to follow clients, unless a restore has left the server paused."""
        paused = await self._database.read(
            lambda connection: connection.execute(sql("meta"), {"key": PAUSED}).fetchone()
        )
        self.paused = paused is not None and paused["value"] == "1"
        if self.paused:
            log.warning("paused after a restore: no client is called until `orch-server resume`")
            return
        await self._follow(settle=paused is not None and paused["value"] == "settling")

    async def stop(self) -> None:
        """Leave what is not over to the next start."""
        await self._errands.close(0)

    async def _follow(self, *, settle: bool) -> None:
        await self._pool.start(await self._records.bound_addresses())
        if settle:
            self._pool.settle()
            self._errands.run(self._settled())

    async def _settled(self) -> None:
        """Once the clients had their time to tell what they have, it is like any other start."""
        await asyncio.sleep(self._patience.lost_after)
        await self._set_paused("0")
        self._look()

    async def unpause(self) -> str:
        """Call the clients again, after a restore: first they tell which jobs they have.

        Raises:
            NotPaused: it is not.
        """
        if not self.paused:
            raise NotPaused
        self.paused = False
        await self._set_paused("settling")
        await self._follow(settle=True)
        return "resumed: clients are asked what they have, then jobs are sent again"

    async def _set_paused(self, value: str) -> None:
        def step(connection: sqlite3.Connection) -> None:
            connection.execute(sql("set_meta"), {"key": PAUSED, "value": value})

        await self._database.write(step)

    async def clients(self) -> list[dict[str, Any]]:
        """How every client stands (see overview.py)."""
        loads = await self._records.client_loads()
        rows = overview(self._pool, self._directory, loads, self._patience.gone_after)
        if self.paused:
            return [{**row, "why": "nobody is called: orch-server resume"} for row in rows]
        return rows

    async def _jobs_at(self, known: Known) -> int:
        return (await self._records.client_loads()).get(known.instance, 0)

    async def gone(self, name: str) -> str:
        """A client will not come back soon: its jobs go to others.

        Raises:
            NoSuchClient, SeveralClients, StillThere: that cannot be said.
        """
        known = self._directory.find(name)
        if self._pool.at(known.instance) is not None:
            raise StillThere(name=known.address)
        await self._directory.say_gone(known.instance)
        jobs = await self._jobs_at(known)
        return f"{known.address} is gone: {jobs} jobs go to others as soon as these have room"

    async def drain(self, name: str) -> str:
        """Send nothing new to a client, and have it give back what it has not begun.

        Raises:
            NoSuchClient, SeveralClients: there is no one such client.
        """
        known = self._directory.find(name)
        await self._directory.drain(known.instance, draining=True)
        client = self._pool.at(known.instance)
        if client is not None:
            await client.hand_back()
        jobs = await self._jobs_at(known)
        return f"{known.address} gets nothing new; {jobs} jobs are there yet"

    async def resume(self, name: str) -> str:
        """Send to a drained client again.

        Raises:
            NoSuchClient, SeveralClients: there is no one such client.
        """
        known = self._directory.find(name)
        await self._directory.drain(known.instance, draining=False)
        self._look()
        return f"{known.address} gets jobs again"
