"""A job in any of its states, and what is needed to let it go on."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator_client import keys as client_keys
from orchestrator_shared.status import Status
from support.behind_proxy import system_behind_proxy
from support.faults import Hold, Rule
from support.gate import Gate
from support.portal import Portal
from support.proxy import Proxy
from support.system import System

#: What run.sh does where it need not wait, to come to these ends.
_RUNS = {Status.COMPLETED: "echo done", Status.FAILED: "exit 3", Status.CLEANED: "true"}


@dataclass
class Situation:
    """A job of user 7, and what holds it in its state."""

    system: System
    proxy: Proxy
    gate: Gate
    held: Hold = field(default_factory=Hold)
    id: int = 0

    @property
    def portal(self) -> Portal:
        """The portal it was uploaded by."""
        return self.system.portal


async def _bring(situation: Situation, status: Status) -> None:
    portal, proxy = situation.portal, situation.proxy
    if status is Status.QUEUED:
        await proxy.down()
    elif status is Status.PROCESSING:
        proxy.add(Rule("submit", situation.held))
    elif status is Status.SUBMITTED:
        # Its slots are taken by what its server does not know of yet.
        situation.system.client[client_keys.RUNNER].stuck = frozenset({-1, -2})
    run = _RUNS.get(status, f"echo half > half.txt\n{situation.gate.wait}")
    name = "no-run.sh" if status is Status.INVALID else "run.sh"
    situation.id = id = await portal.upload({name: run}, user_id=7)
    if status in (Status.RUNNING, Status.UNKNOWN, Status.KILLED):
        await situation.gate.reached()
    if status in (Status.UNKNOWN, Status.KILLED):
        await portal.reached(id, "Running")
    if status is Status.UNKNOWN:
        await proxy.down()
    elif status is Status.KILLED:
        await portal.post(f"/terminate/{id}")
    elif status is Status.CLEANED:
        await portal.ended(id)
        await portal.request("DELETE", f"/jobs/{id}")
    await portal.reached(id, status)


@contextlib.asynccontextmanager
async def job_in(tmp_path: Path, status: Status | str, **changes: Any) -> AsyncIterator[Situation]:
    """A job that is in this state until the test does something about it; `changes` are of the
    server's settings."""
    lost_after = 0.2 if status == Status.UNKNOWN else 15.0
    with contextlib.closing(Gate(tmp_path)) as gate:
        async with system_behind_proxy(
            tmp_path,
            server={"client_lost_after": lost_after, "getter_interval": 0.1, **changes},
            client={"kill_grace": 0.0},
        ) as (system, proxy):
            situation = Situation(system, proxy, gate)
            await _bring(situation, Status(status))
            try:
                yield situation
            finally:
                gate.open()
