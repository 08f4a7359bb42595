"""All clients: which of them are there, what they offer, and where a job's client answers."""

import asyncio
import time
from collections.abc import Iterable, Mapping

import aiohttp

from orchestrator_server.clients.directory import Directory
from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.clients.listening import Listener
from orchestrator_server.clients.original.finding import Originals
from orchestrator_server.clients.requests import new_session
from orchestrator_server.config import ClientAddress, Service
from orchestrator_server.queue.dispatch import Limits, Offer
from orchestrator_server.queue.waiting import Clients
from orchestrator_server.store.job import Job
from orchestrator_shared.client_token import ClientToken

#: How many jobs of a service run at once where its clients do not tell their slots.
DEFAULT_MAX_RUNS = 10
#: The slots of one that does not tell them: its services alone limit it.
UNLIMITED = 1_000_000


class Pool:
    """The clients of all services; one that several services name stands here once."""

    def __init__(
        self,
        services: Mapping[str, Service],
        server: str,
        lost_after: float,
        directory: Directory,
        listener: Listener,
        originals: Originals,
        token: ClientToken | None,
    ) -> None:
        self.services = services
        self._originals = originals
        self._token = token
        self._directory = directory
        self._listener = listener
        self._server = server
        self._lost_after = lost_after
        self._endpoints: dict[str, Endpoint] = {}
        #: After a restore: until when clients may tell which jobs they have (monotonic seconds).
        self._settles_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    async def start(self, bound: Iterable[str]) -> None:
        """Begin to follow every client, and those at the addresses `bound`, which have jobs yet
        even if no service names them any more."""
        self._session = new_session(self._token)
        named = [address for service in self.services.values() for address in service.clients]
        for address in (*named, *map(ClientAddress.from_base, bound)):
            if address.base not in self._endpoints:
                endpoint = Endpoint(
                    address,
                    self._session,
                    self._server,
                    self._lost_after,
                    self._listener,
                    self._directory,
                    self._originals,
                    self._twin,
                )
                self._endpoints[address.base] = endpoint
                self._tasks.append(asyncio.create_task(endpoint.follow(), name=address.base))

    async def stop(self) -> None:
        """Follow no client any more: from now on none says anything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def close(self) -> None:
        """Let go of every connection."""
        if self._session is not None:
            await self._session.close()

    @property
    def endpoints(self) -> list[Endpoint]:
        """All of them, in the order of the settings."""
        return list(self._endpoints.values())

    @property
    def problem(self) -> str | None:
        """What is wrong with following them; None if nothing is."""
        died = [task.get_name() for task in self._tasks if task.done()]
        return f"the stream of {', '.join(died)} died" if died else None

    def at(self, instance: str | None) -> Endpoint | None:
        """The client that has this id, wherever it answers now; None while it does not."""
        return next(
            (e for e in self._endpoints.values() if e.listed and e.instance == instance), None
        )

    def has_copy(self, job: Job) -> bool:
        """Whether a client may still hold files of an ended job."""
        if job.instance is None:
            return False
        known = self._known(job.instance)
        return known is None or (job.id, job.attempt) in known.told

    def last_seen(self, instance: str) -> float | None:
        """When this client was last heard of (monotonic seconds); None: not since the start."""
        known = self._known(instance)
        return known.last_seen if known else None

    def why_out(self, instance: str) -> str:
        """Why this client answers, and works with this server all the same no more; empty: it
        does, or does not answer."""
        outs = (e.why_out for e in self._endpoints.values() if e.instance == instance)
        return next(filter(None, outs), "")

    def name(self, instance: str) -> str:
        """How this client is called in records and logs."""
        known = self._known(instance) or self._directory.get(instance)
        if known is None:
            return instance
        return known.name if isinstance(known, Endpoint) else known.address

    def is_replaced(self, job: Job) -> bool:
        """Whether another client answers where the one that has this job did, and that one
        nowhere: nor may it be at an address where nobody answers yet."""
        there = self._endpoints.get(job.client or "")
        if there is None or not there.listed or self.at(job.instance) is not None:
            return False
        silent = [e for e in self._endpoints.values() if not e.listed and e.same_as is None]
        return not any(self._may_be(e, job.instance) for e in silent)

    def _may_be(self, endpoint: Endpoint, instance: str | None) -> bool:
        """Whether this client may be the one that does not answer at this endpoint."""
        elsewhere = endpoint.instance is None or self.at(endpoint.instance) is not None
        return elsewhere or endpoint.instance == instance

    def _known(self, instance: str | None) -> Endpoint | None:
        return self.at(instance) or next(
            (e for e in self._endpoints.values() if e.instance == instance), None
        )

    def _twin(self, endpoint: Endpoint) -> Endpoint | None:
        """Another endpoint that follows the client which was met at this one."""
        others = (e for e in self._endpoints.values() if e is not endpoint and e.connected)
        return next((e for e in others if e.instance == endpoint.instance), None)

    def _of(self, service: str) -> list[Endpoint]:
        """The clients of a service that are there; one at two addresses is used once."""
        there = [endpoint.same_as or endpoint for endpoint in reversed(self._named(service))]
        return list({e.instance: e for e in there if e.listed}.values())

    def _named(self, service: str) -> list[Endpoint]:
        """All that the settings name for a service; none before they are followed."""
        addresses = self.services[service].clients if service in self.services else ()
        return [self._endpoints[a.base] for a in addresses if a.base in self._endpoints]

    def settles(self, service: str) -> bool:
        """Whether clients of a service may still have to tell which of its jobs they have: after
        a restore this server does not know of all that it has sent."""
        silent = any(not e.listed and e.same_as is None for e in self._named(service))
        return silent and time.monotonic() < self._settles_until

    def settle(self) -> None:
        """Give the clients some time to tell which jobs they have, before any is sent."""
        self._settles_until = time.monotonic() + self._lost_after

    def view(self, service: str) -> Clients:
        """What the Sender decides by."""
        there = self._of(service)
        taking = [e for e in there if e.takes_jobs and e.service in (None, service)]
        away = [endpoint for endpoint in taking if endpoint.backing_off]
        return Clients(
            offers=[
                Offer(
                    e.instance or "",
                    e.start or "",
                    e.name,
                    e.slots if e.tells_slots else UNLIMITED,
                    e.others,
                    e.load,
                )
                for e in taking
                if not e.backing_off
            ],
            reachable=frozenset(e.instance or "" for e in there),
            backing_off=len(away),
            disk_full=sum(endpoint.disk_full for endpoint in away),
        )

    def limits(self, service: str) -> Limits:
        """The quotas of a service, as they are with the clients that are there."""
        configured = self.services.get(service)
        if configured is None:
            return Limits(0, 0)
        there = self._of(service)
        slots = sum(endpoint.slots for endpoint in there)
        if not slots or any(not endpoint.tells_slots for endpoint in there):
            slots += DEFAULT_MAX_RUNS
        return Limits(configured.runs_per_user, configured.max_runs or slots)
