"""How every client stands, and why, as an operator sees it."""

import time
from collections.abc import Mapping
from typing import Any, Final

from orchestrator_server.clients.directory import Directory, Known
from orchestrator_server.clients.endpoint import Endpoint
from orchestrator_server.clients.pool import Pool

#: Of a client that was never met.
_NOBODY: Final[Mapping[str, Any]] = {
    "instance": None,
    "service": None,
    "version": None,
    "slots": 0,
    "slots_in_use": 0,
    "stuck": 0,
    "unknown_payloads": 0,
    "load": None,
    "last_seen": None,
    "state": "lost",
}


def overview(
    pool: Pool, directory: Directory, loads: Mapping[str, int], gone_after: float
) -> list[dict[str, Any]]:
    """A row for each address that is followed, then one for each client that is at none of them
    and has jobs yet, or is drained. `loads` has the active jobs of each instance."""
    rows = [_row(endpoint, directory, loads, gone_after) for endpoint in pool.endpoints]
    shown = {row["instance"] for row in rows}
    away = [
        known
        for known in directory.all()
        if known.instance not in shown and (loads.get(known.instance) or known.draining)
    ]
    return rows + [_away(known, loads, gone_after) for known in away]


def _row(
    endpoint: Endpoint, directory: Directory, loads: Mapping[str, int], gone_after: float
) -> dict[str, Any]:
    known = directory.get(endpoint.instance) or _last_at(directory, endpoint.name)
    if known is None:
        state = "out" if endpoint.why_out else "lost"
        why = endpoint.problem or "it has not been reached yet"
        return {**_NOBODY, "address": endpoint.name, "state": state, "why": why}
    row = {**_away(known, loads, gone_after), "address": endpoint.name}
    if not endpoint.listed:
        if endpoint.why_out:
            row.update(state="out", why=endpoint.why_out)
        elif row["state"] == "lost" and endpoint.problem:
            row["why"] += f": {endpoint.problem}"
        if endpoint.same_as is not None:
            row.update(state="out", why=f"the same client as {endpoint.same_as.name}")
        return row
    state, why = endpoint.state, endpoint.why
    if state == "up" and known.draining:
        state, why = "draining", "orch-server client drain"
    elif state == "up" and endpoint.backing_off:
        why = "it refused a job a moment ago" + (": its disk is full" * endpoint.disk_full)
    row.update(
        slots_in_use=loads.get(known.instance, 0) + endpoint.others,
        stuck=endpoint.stuck,
        unknown_payloads=len(endpoint.unknown),
        load=endpoint.load,
        last_seen=time.time() - (time.monotonic() - (endpoint.last_seen or 0.0)),
        state=state,
        why=why,
    )
    return row


def _away(known: Known, loads: Mapping[str, int], gone_after: float) -> dict[str, Any]:
    state, why = "lost", f"silent for {known.silence_s:.0f} s"
    if known.gone:
        state, why = "gone", "orch-server client gone"
    elif 0 < gone_after <= known.silence_s:
        state = "gone"
    return {
        **_NOBODY,
        "address": known.address,
        "instance": known.instance,
        "service": known.service,
        "version": known.version,
        "slots": known.slots,
        "slots_in_use": loads.get(known.instance, 0),
        "last_seen": known.last_seen,
        "state": state,
        "why": why,
    }


def _last_at(directory: Directory, address: str) -> Known | None:
    """Who was met at this address last."""
    there = [known for known in directory.all() if known.address == address]
    return max(there, key=lambda known: known.last_seen, default=None)
