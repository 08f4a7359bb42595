"""What is wrong with the server, if anything."""

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from orchestrator_server.clients.pool import Pool
from orchestrator_server.operating import Operator
from orchestrator_server.store.database import Database
from orchestrator_server.store.queries import sql
from orchestrator_server.store.room import Room
from orchestrator_server.tasks.cleaner import Cleaner
from orchestrator_shared import __version__
from orchestrator_shared.errors import Transient
from orchestrator_shared.tasks import BackgroundTask

#: How long the database may take for a look-up (seconds).
DATABASE_PATIENCE: Final = 5.0


class Health:
    """Asks every part of the server how it fares."""

    def __init__(
        self,
        room: Room,
        database: Database,
        pool: Pool,
        operator: Operator,
        cleaner: Cleaner,
        tasks: Sequence[BackgroundTask],
    ) -> None:
        self._room = room
        self._database = database
        self._pool = pool
        self._operator = operator
        self._cleaner = cleaner
        self._tasks = tasks

    async def problems(self) -> list[str]:
        """What is wrong, in a sentence each; empty where all is well."""
        found = [self._database.problem, self._pool.problem, self._cleaner.problem]
        found += [task.problem for task in self._tasks]
        found += [await self._database_problem(), self._disk_problem()]
        return [problem for problem in found if problem]

    async def report(self) -> dict[str, Any]:
        """What GET /health answers."""
        problems = await self.problems()
        there = [endpoint for endpoint in self._pool.endpoints if endpoint.listed]
        return {
            "status": "unhealthy" if problems else "healthy",
            "version": __version__,
            "problems": problems,
            "clients_up": len(there),
            "clients": len(self._pool.endpoints),
            "clients_out": self._out(),
            "paused": self._operator.paused,
            "tasks": {
                task.name: {"errors": task.errors, "last_error": task.last_error}
                for task in self._tasks
            },
        }

    def _out(self) -> dict[str, str]:
        """Why clients that answer take no work: the address of each, and its reason."""
        whys = ((e.name, e.why if e.state == "out" else e.why_out) for e in self._pool.endpoints)
        return {name: why for name, why in whys if why}

    async def _database_problem(self) -> str | None:
        try:
            async with asyncio.timeout(DATABASE_PATIENCE):
                await self._database.read(lambda c: c.execute(sql("last_event")).fetchone())
        except (sqlite3.Error, Transient, TimeoutError) as error:
            return f"the database does not answer: {error or 'it takes too long'}"
        return None

    def _disk_problem(self) -> str | None:
        try:
            self._room.check()
        except (Transient, OSError) as error:
            return str(error)
        return None
