"""A client that stays silent: its jobs go to another, and two results never count."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.clients import directory
from orchestrator_server.keys import OPERATOR
from orchestrator_server.operating import StillThere
from support.servers import OwnServer, server_of
from support.standin import Held, StandIn, running_stand_in
from support.system import client_is_there

#: CLIENT_LOST_AFTER and CLIENT_GONE_AFTER here (seconds).
LOST_AFTER = 0.3
GONE_AFTER = 0.6


class Two:
    """A server and two clients, the first of which has a job."""

    def __init__(self, server: OwnServer, first: StandIn, second: StandIn) -> None:
        self.server = server
        self.portal = server.portal
        self.first = first
        self.second = second

    async def begin(self, *, runs: bool = True) -> Held:
        """Have a job run at the first."""
        self.second.slots = 0
        await self.second.cut()
        await self.second.streams.get()
        await client_is_there(self.portal, 2)
        id = await self.portal.upload("true")
        held = await self.first.takes()
        if runs:
            await self.first.runs(held)
        await self.portal.reached(id, "Running" if runs else "Submitted")
        return held

    async def second_has_room(self) -> None:
        """The second client has a slot from now on."""
        self.second.slots = 1
        await self.second.cut()


@contextlib.asynccontextmanager
async def two_clients(tmp_path: Path, **changes: Any) -> AsyncIterator[Two]:
    """Both beat faster than they can be lost."""
    changes = {
        "client_lost_after": LOST_AFTER,
        "client_gone_after": GONE_AFTER,
        "getter_interval": 0.05,
        **changes,
    }
    async with (
        running_stand_in(instance="0" * 31 + "1", beats=0.05) as first,
        running_stand_in(instance="0" * 31 + "2", beats=0.05) as second,
        server_of(tmp_path, [first.base, second.base], **changes) as server,
    ):
        await client_is_there(server.portal, 2)
        yield Two(server, first, second)


@pytest.mark.parametrize("runs", [True, False], ids=["running", "submitted"])
async def test_the_job_of_a_client_that_is_gone_goes_to_another(tmp_path: Path, runs: bool) -> None:
    """In one commit, with a new attempt; the old one is dropped when its client is back."""
    async with two_clients(tmp_path) as two:
        held = await two.begin(runs=runs)
        await two.second_has_room()
        await two.first.vanish()

        again = await two.second.takes()
        assert (again.job, again.attempt) == (held.job, 2)
        await two.second.runs(again)
        await two.portal.reached(held.job, "Running")
        await two.first.appear()
        assert await two.first.acknowledged.get() == (held.job, 1)
        await two.second.ends(again, b"the second", inline=True)
        record = await two.portal.ended(held.job)
        assert (record["status"], record["attempt"]) == ("Completed", 2)
        assert (await two.portal.get(f"/download/{held.job}")).body == b"the second"
        changes = [(e["status"], e["attempt"]) for e in record["history"]]
        assert ("Unknown", 1) in changes
        assert changes[changes.index(("Unknown", 1)) + 1] == ("Processing", 2)
        (reason,) = [e["reason"] for e in record["history"] if "handed over" in (e["reason"] or "")]
        assert two.first.base in reason


async def test_the_result_of_a_superseded_attempt_is_refused(tmp_path: Path) -> None:
    """It comes first, and before the other has ended: it does not count all the same."""
    async with two_clients(tmp_path) as two:
        held = await two.begin()
        await two.second_has_room()
        await two.first.vanish()
        again = await two.second.takes()
        held.state["status"] = "Completed"
        held.result = b"the first"
        await two.first.appear()
        await two.first.ends(held, b"the first", inline=True)
        assert await two.first.acknowledged.get() == (held.job, 1)
        await two.second.ends(again, b"the second", inline=True)
        await two.portal.ended(held.job)
        assert (await two.portal.get(f"/download/{held.job}")).body == b"the second"


async def test_while_no_other_has_room_the_job_stays_with_its_client(tmp_path: Path) -> None:
    """The client returns before any other had a slot: the job goes on there."""
    async with two_clients(tmp_path) as two:
        held = await two.begin()
        await two.first.vanish()
        await two.portal.reached(held.job, "Unknown")
        await _is_gone(two)
        await two.first.appear()
        record = await two.portal.reached(held.job, "Running")
        assert record["attempt"] == 1
        await two.second_has_room()
        await two.first.ends(held, b"the first", inline=True)
        assert (await two.portal.ended(held.job))["attempt"] == 1
        assert two.second.submits.empty()


async def test_zero_switches_the_handing_over_off(tmp_path: Path) -> None:
    """CLIENT_GONE_AFTER=0: only CLIENT_GIVE_UP_AFTER ends the waiting."""
    async with two_clients(tmp_path, client_gone_after=0.0, client_give_up_after=1.0) as two:
        held = await two.begin()
        await two.second_has_room()
        await two.first.vanish()
        record = await two.portal.ended(held.job)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert "was silent for" in record["reason"]
        assert two.second.submits.empty()
        await two.first.appear()
        assert await two.first.acknowledged.get() == (held.job, 1)


async def test_a_job_with_a_wish_is_killed_and_not_handed_over(tmp_path: Path) -> None:
    """Somebody asked for its end while its client was away."""
    async with two_clients(tmp_path) as two:
        held = await two.begin()
        await two.first.vanish()
        await two.portal.reached(held.job, "Unknown")
        answer = asyncio.create_task(two.portal.post(f"/terminate/{held.job}"))
        await two.second_has_room()
        record = await two.portal.ended(held.job)
        assert (record["status"], record["fault"]) == ("Killed", "operator")
        assert (await answer).status == 200
        assert two.second.submits.empty()
        await two.first.appear()
        assert await two.first.acknowledged.get() == (held.job, 1)


async def test_a_submit_whose_outcome_nobody_knows_goes_over_too(tmp_path: Path) -> None:
    """The client fell silent before it answered: Processing, Unknown, then another's."""
    async with two_clients(tmp_path) as two:
        two.second.slots = 0
        await two.second.cut()
        await two.second.streams.get()
        await client_is_there(two.portal, 2)
        two.first.answers = False
        id = await two.portal.upload("true")
        assert await two.first.submits.get() == (id, 1)
        await two.second_has_room()
        await two.first.vanish()
        again = await two.second.takes()
        assert (again.job, again.attempt) == (id, 2)


async def test_a_submit_of_unknown_outcome_is_sent_again_to_its_client(tmp_path: Path) -> None:
    """It is back before it is gone: the same attempt, and it runs once."""
    async with two_clients(tmp_path, client_gone_after=600.0) as two:
        two.second.slots = 0
        await two.second.cut()
        await two.second.streams.get()
        await client_is_there(two.portal, 2)
        two.first.answers = False
        id = await two.portal.upload("true")
        assert await two.first.submits.get() == (id, 1)
        two.first.held.clear()
        await two.first.vanish()
        await two.portal.reached(id, "Unknown")
        two.first.answers = True
        await two.first.appear()
        assert await two.first.submits.get() == (id, 1)
        record = await two.portal.reached(id, "Submitted")
        assert record["attempt"] == 1


async def test_an_operator_can_say_that_a_client_is_gone(tmp_path: Path) -> None:
    """Long before CLIENT_GONE_AFTER; of one that answers it cannot be said."""
    async with two_clients(tmp_path, client_gone_after=600.0) as two:
        held = await two.begin()
        operator = two.server.app[OPERATOR]
        with pytest.raises(StillThere, match="answers, so it is not gone"):
            await operator.gone(two.first.base)
        await two.second_has_room()
        await two.first.vanish()
        await two.portal.reached(held.job, "Unknown")
        assert "1 jobs go to others" in await operator.gone(two.first.base)
        again = await two.second.takes()
        assert (again.job, again.attempt) == (held.job, 2)


async def test_silence_goes_on_over_a_restart_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client was silent for before counts; only this server's own absence does not."""
    monkeypatch.setattr(directory, "KEEP_EVERY", 0.1)
    async with two_clients(tmp_path, client_gone_after=600.0) as two:
        held = await two.begin()
        await two.first.vanish()
        while await _silence(two) < 1:
            await asyncio.sleep(0.02)
        bases = [two.first.base, two.second.base]
    async with server_of(tmp_path, bases, getter_interval=60.0) as server:
        two = Two(server, two.first, two.second)
        assert await _silence(two) >= 1
        assert (await server.portal.job(held.job))["attempt"] == 1


async def _silence(two: Two) -> int:
    """For how many whole seconds the first has been silent, as GET /clients says."""
    (row,) = [row for row in await _clients(two) if row["address"] == two.first.base]
    return next((int(word) for word in row["why"].split() if word.isdigit()), 0)


async def _clients(two: Two) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await two.portal.get("/clients")).json["clients"]
    return rows


async def _is_gone(two: Two) -> None:
    """Wait until GET /clients says so of the first: it brings no event."""
    while next(r for r in await _clients(two) if r["address"] == two.first.base)["state"] != "gone":
        await asyncio.sleep(0.02)
