"""Whom a client tells what it says."""

from typing import TYPE_CHECKING, Protocol

from orchestrator_shared.messages import Hello, PayloadState

if TYPE_CHECKING:
    from orchestrator_server.clients.endpoint import Endpoint


class Listener(Protocol):
    """Who wants to know what a client says."""

    def on_state(self, client: "Endpoint", payload: PayloadState, result: bytes) -> None:
        """A payload is now so; a small result comes with it."""

    def on_listed(self, client: "Endpoint") -> None:
        """The client is there, and has told of every payload."""

    def on_room(self, client: "Endpoint") -> None:
        """The client may take more than before."""


class Acquaintance(Protocol):
    """Who remembers clients for longer than this server lives."""

    def meet(self, instance: str, address: str, hello: Hello) -> None:
        """A client has said who it is."""

    def is_draining(self, instance: str | None) -> bool:
        """Whether nothing new is to be sent to it."""
