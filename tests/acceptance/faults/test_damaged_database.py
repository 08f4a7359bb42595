"""The database is damaged on its disk: it says so in one line and ends; it repairs nothing."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from acceptance.faults.world import LOOK, PATIENCE, World, world

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

#: The size of its pages (bytes).
PAGE = 4096


def overwrite(path: Path, start: int) -> None:
    """Put rubbish in the place of everything from there on."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(os.urandom(path.stat().st_size - start))


def cut_short(path: Path) -> None:
    """As if half of it had never reached the disk."""
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "head": lambda path: overwrite(path, 0),
    "pages": lambda path: overwrite(path, PAGE),
    "length": cut_short,
}


async def stopped_with_jobs(world: World) -> Path:
    """The database of a server that has stopped, and has some jobs."""
    for _ in range(3):
        await world.portal.ended(await world.upload())
    assert await world.server.stop(signal.SIGTERM) == 0
    return world.checker.database


async def asked(world: World, method: str, path: str) -> None:
    """Ask once, whatever the answer."""
    async with world.portal.session.request(method, world.server.url + path):
        pass


@pytest.mark.parametrize(
    "damage",
    [
        DAMAGES["pages"],
        *(pytest.param(DAMAGES[name], marks=pytest.mark.faults) for name in ("head", "length")),
    ],
    ids=["pages", "head", "length"],
)
async def test_a_damaged_database_is_refused(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Exit code 3, and one line that names it and the way back; nothing else is touched."""
    async with world(tmp_path, clients=1) as there:
        database = await stopped_with_jobs(there)
        damage(database)
        damaged = database.read_bytes()
        await there.server.spawn("--port", str(there.server.port))
        assert await there.server.exited() == 3
        line = there.server.log[-1]
        assert str(database.name) in line
        assert "backup" in line
        assert not [line for line in there.server.log if "Traceback" in line]
        assert database.read_bytes() == damaged


async def test_a_database_that_is_damaged_while_it_is_used_ends_its_server(tmp_path: Path) -> None:
    """It goes on with nothing that it cannot believe: exit code 3, with the same line."""
    async with world(tmp_path, clients=1) as there:
        for _ in range(3):
            await there.portal.ended(await there.upload())
        # All of it in its file, so that it is read from there.
        assert await there.server.stop(signal.SIGTERM) == 0
        await there.server.start()
        overwrite(there.checker.database, PAGE)
        async with asyncio.timeout(20):
            while not there.server.has_ended:
                with contextlib.suppress(aiohttp.ClientError):
                    # What is written makes those who read look at the file again.
                    await asked(there, "DELETE", "/jobs/1")
                    await asked(there, "GET", "/jobs?limit=500")
                await asyncio.sleep(LOOK)
        assert await there.server.exited() == 3
        assert "backup" in there.server.log[-1]
