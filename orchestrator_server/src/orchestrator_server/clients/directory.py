"""Every client that was ever met: what it said of itself, for how long it has been silent, and
what an operator said of it. It outlives the server, as jobs are bound to clients for days."""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from orchestrator_server.store.database import Database
from orchestrator_server.store.queries import sql
from orchestrator_shared.errands import Errands
from orchestrator_shared.errors import Conflict, OrchestratorError
from orchestrator_shared.messages import Hello

#: How much of a client's silence (seconds) a kill of this server may lose.
KEEP_EVERY: Final = 10.0
#: How long changes under way may take when the server stops (seconds).
CLOSE_PATIENCE: Final = 0.5


class NoSuchClient(OrchestratorError):
    """There is no client '{name}': name it by its address or its instance (orch-server client
    list)."""


class SeveralClients(Conflict):
    """'{name}' fits {clients}: name one of them"""


@dataclass(frozen=True, slots=True)
class Known:
    """A row of the table clients."""

    instance: str
    address: str
    service: str | None
    version: str
    slots: int
    #: Seconds since 1970.
    last_seen: float
    #: How long it has been silent (seconds) while this server was up and trying.
    silence_s: float
    gone: int
    draining: int


class Directory:
    """The table of clients, kept in memory too. Reading costs nothing."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._original_ids: dict[str, tuple[int, int]] = {}
        self._errands = Errands("what is known of a client could not be kept")

    async def open(self) -> None:
        """Read the table."""

        def step(connection: sqlite3.Connection) -> list[Known]:
            originals = connection.execute(sql("original_clients"))
            self._original_ids = {instance: (highest, n) for instance, highest, n in originals}
            return [Known(*row) for row in connection.execute(sql("clients"))]

        self._known = {known.instance: known for known in await self._database.read(step)}

    async def close(self) -> None:
        """Write what is to be written yet."""
        await self._errands.close(CLOSE_PATIENCE)

    def all(self) -> list[Known]:
        """All of them."""
        return list(self._known.values())

    def get(self, instance: str | None) -> Known | None:
        """The client of this id; None if it was never met."""
        return self._known.get(instance or "")

    def find(self, name: str) -> Known:
        """The client of this address or instance, or of the one instance that begins so.

        Raises:
            NoSuchClient, SeveralClients: it is none, or not one.
        """
        found = [
            known
            for known in self._known.values()
            if name.rstrip("/") == known.address or name == known.instance
        ] or [known for known in self._known.values() if name and known.instance.startswith(name)]
        # An address that several had: the one that was there last is meant.
        if len({known.address for known in found}) == 1:
            return max(found, key=lambda known: known.last_seen)
        if not found:
            raise NoSuchClient(name=name)
        clients = ", ".join(f"{known.instance} at {known.address}" for known in found)
        raise SeveralClients(name=name, clients=clients)

    def is_draining(self, instance: str | None) -> bool:
        """Whether an operator wants nothing new to be sent to it."""
        known = self.get(instance)
        return known is not None and bool(known.draining)

    def meet(self, instance: str, address: str, hello: Hello) -> None:
        """A client has said who it is: its silence is over."""
        former = self.get(instance)
        met = Known(
            instance,
            address,
            hello.service,
            hello.version,
            hello.slots,
            self._clock(),
            silence_s=0.0,
            gone=0,
            draining=former.draining if former else 0,
        )
        self._known[instance] = met
        self._errands.run(self._change("meet", **asdict(met)))

    def add_silence(self, instance: str, seconds: float) -> float:
        """It has been silent for so much longer; gives back for how long in all (seconds)."""
        known = self.get(instance)
        if known is None:
            return 0.0
        silence = known.silence_s + seconds
        last_seen = known.last_seen if known.silence_s else self._clock() - silence
        silent = replace(known, silence_s=silence, last_seen=last_seen)
        self._known[instance] = silent
        if silence // KEEP_EVERY > known.silence_s // KEEP_EVERY:
            self._errands.run(self._change("keep_silence", **asdict(silent)))
        return silence

    def original_ids(self, instance: str) -> tuple[int, int]:
        """Of a client of the original: the highest id that it gave to a payload, and how often its
        ids began again."""
        return self._original_ids.get(instance, (0, 0))

    async def keep_original_ids(self, instance: str, highest: int, resets: int) -> None:
        """What original_ids gives back from now on."""
        if self._original_ids.get(instance) != (highest, resets):
            await self._change(
                "keep_original_ids", instance=instance, highest_id=highest, resets=resets
            )
            self._original_ids[instance] = (highest, resets)

    async def say_gone(self, instance: str) -> None:
        """An operator knows that it will not come back soon."""
        self._known[instance] = replace(self._known[instance], gone=1)
        await self._change("say_gone", instance=instance)

    async def drain(self, instance: str, *, draining: bool) -> None:
        """Send it nothing new, or send to it again; that stays over restarts."""
        self._known[instance] = replace(self._known[instance], draining=int(draining))
        await self._change("drain", instance=instance, draining=int(draining))

    async def _change(self, name: str, **values: Any) -> None:
        def step(connection: sqlite3.Connection) -> None:
            connection.execute(sql(name), values)

        await self._database.write(step)
