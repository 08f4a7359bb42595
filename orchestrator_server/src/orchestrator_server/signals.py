"""Who is told of what: how clients and commits reach those who act on them."""

import logging
from collections.abc import Collection, Mapping, Sequence

from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.config import Service, served_by
from orchestrator_server.store.database import Row
from orchestrator_server.tasks.cleaner import Cleaner
from orchestrator_server.tasks.getter import Getter
from orchestrator_server.tasks.sender import Sender
from orchestrator_server.watchers import Watchers
from orchestrator_shared.messages import PayloadState
from orchestrator_shared.status import ACTIVE, ENDED, Status

log = logging.getLogger(__name__)


class Signals:
    """Clients and commits on one side, those who act on what they tell on the other."""

    def __init__(self, services: Mapping[str, Service], watchers: Watchers) -> None:
        self.getter: Getter | None = None
        self.sender: Sender | None = None
        self.cleaner: Cleaner | None = None
        self._services = services
        self._watchers = watchers

    def on_state(self, client: Endpoint, payload: PayloadState, result: bytes) -> None:
        """A client tells of a payload."""
        if self.getter is not None:
            self.getter.on_state(client, payload, result)

    def on_listed(self, client: Endpoint) -> None:
        """A client is there."""
        if self.getter is not None:
            self.getter.on_listed(client)
        if self.sender is not None:
            self.sender.look()

    def on_room(self, client: Endpoint) -> None:
        """A client may take more."""
        for service in served_by(self._services, client.address):
            if self.sender is not None:
                self.sender.wake(service)

    def on_commit(self, changes: Sequence[Row], dispatched: Collection[str]) -> None:
        """Jobs have changed: say so in the log, wake those who wait and who act on it. Of the
        services `dispatched` all have gone that could."""
        # As one message: a commit may have hundreds of changes.
        log.info("%s", "\n".join(map(_line, changes)))
        for change in changes:
            if change["new"] == Status.PROCESSING and self.sender is not None:
                self.sender.on_processing(change["job"], change["attempt"])
            self._wake_sender(change, dispatched)
            if change["delete_requested"] and change["new"] in ENDED and self.cleaner is not None:
                self.cleaner.task.wake()
        self._watchers.publish(changes)

    def _wake_sender(self, change: Row, dispatched: Collection[str]) -> None:
        service = change["service"]
        if self.sender is None or service not in self._services:
            return
        if change["new"] == Status.QUEUED:
            woken = {service}
        elif change["old"] in ACTIVE and change["new"] not in ACTIVE:
            woken = self._sharing(service)
        else:
            return
        for name in woken.difference(dispatched):
            self.sender.wake(name)

    def _sharing(self, service: str) -> set[str]:
        """The services that have a client in common with this one, itself among them."""
        own = {address.base for address in self._services[service].clients}
        return {
            name
            for name, other in self._services.items()
            if own & {address.base for address in other.clients}
        }


def _line(change: Row) -> str:
    """A change of a job as the log has it."""
    client = f" client {change['client']}" if change["client"] else ""
    reason = f" reason: {change['reason']}" if change["reason"] else ""
    return (
        f"job {change['job']} user {change['user_id']} {change['service']} {change['old'] or '-'} "
        f"→ {change['new']} attempt {change['attempt']}{client}{reason}"
    )
