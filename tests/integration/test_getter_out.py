"""A client that answers and speaks another protocol is out: its jobs wait, and none fails."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.api.parameters import WAIT_MOST
from support.servers import OwnServer, server_of
from support.standin import StandIn, running_stand_in
from support.system import client_is_there

#: Much sooner than a client is out for here, a silent one would be lost, gone, and given up.
IMPATIENT: dict[str, Any] = {
    "client_lost_after": 0.2,
    "client_gone_after": 0.3,
    "client_give_up_after": 0.4,
    "getter_interval": 0.05,
}
#: As long as all of that, and more (seconds): what does not happen can only be waited for.
LONG = 0.8


async def is_out(server: OwnServer, stand_in: StandIn) -> dict[str, Any]:
    """Wait until the client at this address is shown as out."""
    async with asyncio.timeout(WAIT_MOST):
        while True:
            rows = (await server.portal.get("/clients")).json["clients"]
            row: dict[str, Any] = next(r for r in rows if r["address"] == stand_in.base)
            if row["state"] == "out":
                return row
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("takes", [False, True], ids=["refuses", "only says so"])
async def test_its_jobs_wait_until_it_speaks_ours_again(tmp_path: Path, takes: bool) -> None:
    """Whether it refuses the stream or names its protocol on it; they are not handed over."""
    async with (
        running_stand_in(instance="0" * 31 + "1", beats=0.05, takes_any_protocol=takes) as first,
        running_stand_in(instance="0" * 31 + "2", beats=0.05, slots=0) as second,
        server_of(tmp_path, [first.base, second.base], **IMPATIENT) as server,
    ):
        await client_is_there(server.portal, 2)
        id = await server.portal.upload("true")
        held = await first.takes()
        await first.runs(held)
        await server.portal.reached(id, "Running")

        first.protocol = 2
        await first.cut()
        row = await is_out(server, first)
        assert "protocol 2" in row["why"]
        assert row["instance"] == first.instance
        record = await server.portal.reached(id, "Unknown")
        assert "protocol 2" in record["history"][-1]["reason"]
        second.slots = 1
        await second.cut()
        await client_is_there(server.portal, 1)
        other = await server.portal.upload("true")
        assert await second.submits.get() == (other, 1)
        await asyncio.sleep(LONG)
        assert (await server.portal.job(id))["status"] == "Unknown"
        assert second.submits.empty()

        first.protocol = 1
        await server.portal.reached(id, "Running")
        await first.ends(held, b"its own", inline=True)
        record = await server.portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 1)


async def test_it_is_out_from_the_start(tmp_path: Path) -> None:
    """One that was never met: the job waits for a client, and goes once it speaks ours."""
    async with (
        running_stand_in(protocol=2) as stand_in,
        server_of(tmp_path, [stand_in.base], **IMPATIENT) as server,
    ):
        id = await server.portal.upload("true")
        row = await is_out(server, stand_in)
        assert (row["instance"], "protocol 2" in row["why"]) == (None, True)
        assert (await server.portal.job(id))["waiting"]["code"] == "no_client"

        stand_in.protocol = 1
        assert await stand_in.submits.get() == (id, 1)


async def test_a_large_job_that_is_refused_for_it_is_queued_again(tmp_path: Path) -> None:
    """The client was changed between its stream and the submit: that is no payload lost."""
    async with (
        running_stand_in(takes_any_protocol=True) as stand_in,
        server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server,
    ):
        await client_is_there(server.portal)
        stand_in.protocol = 2
        stand_in.takes_any_protocol = False
        id = await server.portal.upload({"run.sh": "true", "input": bytes(2**20)})
        assert await stand_in.submits.get() == (id, 1)
        record = await server.portal.reached(id, "Queued")
        assert "HTTP 426" in record["history"][-1]["reason"]

        stand_in.protocol = 1
        assert await stand_in.submits.get() == (id, 2)
