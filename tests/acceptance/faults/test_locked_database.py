"""Somebody else locks the database: who asks waits, and nothing that was answered is lost."""

import asyncio
from pathlib import Path

import pytest

from acceptance.faults.disks import locked
from acceptance.faults.load import load
from acceptance.faults.world import PATIENCE, SCALE, eventually, world

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

#: How long it is locked (seconds); requests wait for 15.
LOCKED = 2.0 if SCALE == 1 else 10.0


async def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    """Under load, with jobs that run and end meanwhile."""
    async with world(tmp_path, server={"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"}) as there:
        uploading = asyncio.create_task(load(there, 24 * SCALE))
        await eventually(lambda: there.checker.changes() > 10)
        async with locked(there.checker.database):
            await asyncio.sleep(LOCKED)
        await uploading
        await there.settled()
        assert not there.checker.run_again()


async def test_a_locked_database_can_be_read(tmp_path: Path) -> None:
    """The server shows what is so, and lives."""
    async with world(tmp_path, clients=1) as there:
        id = await there.upload()
        await there.portal.ended(id)
        async with locked(there.checker.database):
            uploading = asyncio.create_task(there.upload())
            assert (await there.portal.job(id))["status"] == "Completed"
            assert (await there.portal.get(f"/download/{id}")).status == 200
            assert (await there.portal.get("/live")).status == 200
            assert not uploading.done()
        await uploading
        await there.settled()
