"""Why a Queued job waits: the same numbers that the Sender decides by, in its order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator_server.queue.dispatch import Limits, Offer
from orchestrator_server.store.records import JobDetails


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of a service, as far as a waiting job depends on them."""

    offers: Sequence[Offer]
    reachable: frozenset[str]
    backing_off: int
    disk_full: int


def explain(details: JobDetails, limits: Limits, clients: Clients) -> dict[str, Any]:
    """What stands in the way of a Queued job: a code, and the limit that is reached."""
    used = details.queue["active"] if details.queue else 0
    runs = sum(n for instance, n in details.loads.items() if instance in clients.reachable)
    code, limit, count = "no_slot", sum(offer.slots for offer in clients.offers), runs
    if not clients.offers:
        code, limit, count = "no_client", 0, 0
        if clients.backing_off:
            code = "disk" if clients.disk_full == clients.backing_off else "backoff"
    elif used >= limits.runs_per_user:
        code, limit, count = "user_quota", limits.runs_per_user, used
    elif runs >= limits.max_runs:
        code, limit, count = "service_quota", limits.max_runs, runs
    return {
        "code": code,
        "ahead": details.ahead,
        "users": details.users,
        "limit": limit,
        "used": count,
    }
