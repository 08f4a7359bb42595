"""The way back from a backup: a damaged database, and a server that has lost hours."""

import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.commands import command
from support.portal import Answer, Files, Portal
from support.processes import Program, programs
from support.system import client_is_there

#: Of jobs whose files and results lie beside the database.
LARGE: Files = {"run.sh": "cat in in > out", "in": bytes(range(256)) * 400}


@pytest.fixture
async def both(
    tmp_path: Path, session: aiohttp.ClientSession
) -> AsyncIterator[tuple[Program, Portal]]:
    """A server that has a client, and a portal."""
    async with programs(tmp_path) as (server, _):
        portal = Portal(server.url, session)
        await client_is_there(portal)
        yield server, portal


async def _done(server: Program, line: str) -> str:
    done = await command(server, *line.split())
    assert (done.code, done.errors) == (0, "")
    return done.out


def _move_away(server: Program) -> None:
    away = server.folder / "broken"
    away.mkdir()
    for path in [*server.folder.glob("orch-server.sqlite*"), server.folder / "server-data"]:
        path.rename(away / path.name)


async def _results(portal: Portal, ids: list[int]) -> list[Answer]:
    return [await portal.get(f"/download/{id}") for id in ids]


def _damage(database: Path) -> None:
    """All but the first page is overwritten, as a broken disk might."""
    for path in (database, database.with_name(database.name + "-wal")):
        if path.exists():
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it is stopped"])
async def test_the_way_back_from_a_damaged_database(
    both: tuple[Program, Portal], running: bool
) -> None:
    """Exit code 3 and a line that says what to do; that done, all is there again, and goes on."""
    server, portal = both
    ids = [await portal.upload(files) for files in (LARGE, "true", LARGE)]
    records = [await portal.ended(id) for id in ids]
    results = await _results(portal, ids)
    await _done(server, "backup backup")

    if running:
        _damage(server.folder / "orch-server.sqlite")
        with pytest.raises(aiohttp.ClientError):
            while True:
                await portal.try_upload({"run.sh": "true"})
                await portal.get("/jobs")
    else:
        await server.stop()
        _damage(server.folder / "orch-server.sqlite")
        await server.spawn()

    assert await server.exited() == 3
    assert re.fullmatch(
        r"orch-server: The database .*/orch-server\.sqlite cannot be used: .* It is damaged: move "
        r"it and DATA_PATH away, then restore a backup \(orch-server restore DIR\)\.",
        server.log[-1],
    )
    _move_away(server)
    await _done(server, "restore backup")
    await server.start()
    assert [await portal.job(id) for id in ids] == records
    assert [answer.body for answer in await _results(portal, ids)] == [r.body for r in results]
    await _done(server, "resume")
    id = await portal.upload(LARGE)
    assert id > max(ids) + 1_000_000
    assert (await portal.ended(id))["status"] == "Completed"
    assert (await portal.result(id)).read("out") == 2 * bytes(range(256)) * 400


async def test_a_restored_server_calls_nobody_until_it_is_told_to(
    both: tuple[Program, Portal],
) -> None:
    """Also after another start."""
    server, portal = both
    await portal.ended(await portal.upload("true"))
    await _done(server, "backup backup")
    await server.stop(signal.SIGKILL)
    _move_away(server)
    await _done(server, "restore backup")
    for _ in range(2):
        await server.start()
        health = (await portal.get("/health")).json
        assert (health["paused"], health["clients_up"]) == (True, 0)
        await server.stop()
    await server.start()
    id = await portal.upload("true")
    assert (await portal.job(id))["status"] == "Queued"

    assert await _done(server, "resume")

    assert (await portal.ended(id))["status"] == "Completed"
    again = await command(server, "resume")
    assert again.code == 1
    assert "not paused" in again.refusal
