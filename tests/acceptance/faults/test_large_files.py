"""A file may not grow any more (EFBIG, as by `ulimit -f`): as little is lost as by a full disk."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from acceptance.faults.disks import files_end_at
from acceptance.faults.world import LOOK, PATIENCE, World, world
from support.portal import Portal

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

#: More than a database of these tests has, with its log (bytes).
LIMIT = 8 * 2**20
#: More than that.
TOO_LARGE = LIMIT + 2**20

ONE_ATTEMPT = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}


async def reason(world: World, id: int, code: str) -> None:
    """Wait until a job waits for this."""
    async with asyncio.timeout(PATIENCE):
        while ((await world.portal.job(id))["waiting"] or {}).get("code") != code:
            await asyncio.sleep(LOOK)


async def test_an_upload_that_may_not_be_kept_is_refused(tmp_path: Path) -> None:
    """507, and nothing is left of it; others are taken."""
    async with world(tmp_path, clients=1) as there:
        with files_end_at(there.server, LIMIT):
            answer = await there.portal.try_work(there.work(size=TOO_LARGE))
            assert answer.status == 507
            await there.upload()
        await there.upload(size=TOO_LARGE)
        await there.settled()


async def test_a_result_that_may_not_be_kept_waits(tmp_path: Path) -> None:
    """Unknown, without an attempt used, until it can be fetched."""
    async with world(tmp_path, clients=1, server=ONE_ATTEMPT) as there:
        gate = there.gate()
        id = await there.upload(script=gate.script, size=TOO_LARGE)
        await there.begun(id)
        with files_end_at(there.server, LIMIT):
            gate.open()
            await there.portal.reached(id, "Unknown")
        await there.settled()


async def test_a_commit_that_may_not_be_written_loses_nothing(tmp_path: Path) -> None:
    """The server ends rather than to believe its own memory, or says that it has no room: what
    it had acknowledged goes on."""
    async with world(tmp_path, clients=1, server=ONE_ATTEMPT) as there:
        gate = there.gate()
        ids = [await there.upload(script=gate.script, large=large) for large in (False, True)]
        for id in ids:
            await there.begun(id)
        impatient = Portal(there.server.url, there.portal.session)
        with files_end_at(there.server, 0):
            try:
                answer = await impatient.try_upload({"run.sh": "true\n"})
                assert answer.status == 507
            except aiohttp.ClientError:
                assert await there.server.exited() == 3
        gate.open()
        if there.server.has_ended:
            await there.server.start()
        await there.settled()


@pytest.mark.faults
async def test_a_submit_that_may_not_be_kept_waits_at_the_server(tmp_path: Path) -> None:
    """Queued, with the reason; no attempt is lost."""
    async with world(tmp_path, clients=1, server=ONE_ATTEMPT) as there:
        with files_end_at(there.clients[0], LIMIT):
            id = await there.upload(size=TOO_LARGE)
            await reason(there, id, "disk")
        await there.settled()
        assert len(there.checker.attempts(id)) == 1


@pytest.mark.faults
async def test_a_result_that_may_not_be_packed_is_packed_later(tmp_path: Path) -> None:
    """The end of a payload waits until there is room; no attempt is lost by it."""
    async with world(tmp_path, clients=1, server=ONE_ATTEMPT) as there:
        gate = there.gate()
        id = await there.upload(script=gate.script, size=TOO_LARGE)
        await there.begun(id)
        with files_end_at(there.clients[0], LIMIT):
            gate.open()
            await there.clients[0].logged("cannot be packed yet")
        await there.settled()
