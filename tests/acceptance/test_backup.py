"""A backup under load, and its restore while the clients run on."""

import contextlib
import json
import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

from acceptance.faults.load import load
from acceptance.faults.world import World, eventually, world
from support.commands import command
from support.faults import Delay, Rule

#: Jobs of the load, before and after the backup.
JOBS = 16
#: More than all attempts of a job.
ATTEMPTS = {"SERVICE_EXAMPLE_MAX_ATTEMPTS": "100"}


def _ids(database: Path) -> set[int]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {id for (id,) in connection.execute("SELECT id FROM jobs")}


def _move_away(there: World) -> None:
    away = there.server.folder / "away"
    away.mkdir()
    for path in there.server.folder.glob("orch-server.sqlite*"):
        path.rename(away / path.name)
    (there.server.folder / "server-data").rename(away / "server-data")


async def _lose_and_restore(there: World) -> None:
    """The server dies, and with it all that it has."""
    await there.server.stop(signal.SIGKILL)
    _move_away(there)
    restored = await command(there.server, "restore", "backup")
    assert restored.code == 0, restored
    await there.server.start()
    resumed = await command(there.server, "resume")
    assert resumed.code == 0, resumed


def _at_clients(there: World, job: int) -> list[dict[str, Any]]:
    """What the clients have of a job on their disks: how its payloads ended, if they have."""
    found = []
    for client in there.clients:
        for payload in (client.folder / "client-data" / "payloads").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if json.loads((payload / "payload.json").read_text())["job"] == job:
                    end = payload / "end.json"
                    found.append(json.loads(end.read_text()) if end.exists() else {})
    return found


async def test_a_backup_under_load_and_its_restore_while_clients_run_on(tmp_path: Path) -> None:
    """Every job that the backup knows ends once with its own result; no number comes again; what
    the backup does not know runs on at its client, and stays there."""
    async with world(tmp_path, server=ATTEMPTS) as there:
        # One that runs while it is backed up and restored, and one that the backup will not know.
        gate, other_gate = there.gate(), there.gate()
        held = await there.upload(script=gate.script, large=True)
        await there.begun(held)
        await load(there, JOBS)
        backing_up = command(there.server, "backup", "backup")
        await load(there, JOBS)
        done = await backing_up
        assert done.code == 0, done
        unknown = await there.upload(script=other_gate.script)
        await there.begun(unknown)
        await load(there, JOBS)

        given = dict(there.checker.works)
        await _lose_and_restore(there)
        known = _ids(there.server.folder / "backup" / "orch-server.sqlite")
        assert held in known
        assert unknown not in known
        await there.clients_are_there()
        gate.open()
        # What was acknowledged after the backup is lost, as nobody here knows of it.
        there.checker.works = {id: own for id, own in given.items() if id in known}
        await load(there, JOBS)
        await there.ended()

        assert min(set(there.checker.works) - known) > max(given)
        _, problems = there.checker.look()
        assert not problems
        (payload,) = _at_clients(there, unknown)
        assert payload == {}
        listed = await command(there.server, "client", "list")
        assert re.search(r"payloads of unknown jobs: [1-9]", listed.out), listed
        other_gate.open()
        await eventually(lambda: _at_clients(there, unknown)[0])
        (payload,) = _at_clients(there, unknown)
        assert payload["status"] == "Completed"
        assert os.path.lexists(there.server.folder / "backup" / "backup.json")


async def test_what_was_sent_after_the_backup_is_taken_up_where_it_is(tmp_path: Path) -> None:
    """The backup knows these jobs as Queued: they are not begun a second time."""
    async with world(tmp_path, server=ATTEMPTS) as there:
        first, second = there.gate(), there.gate()
        before = [await there.upload(script=first.script) for _ in range(4)]
        for id in before:
            await there.begun(id)
        after = [await there.upload(script=second.script, large=n % 2 > 0) for n in range(4)]
        done = await command(there.server, "backup", "backup")
        assert done.code == 0, done
        first.open()
        for id in after:
            await there.begun(id)

        await _lose_and_restore(there)
        second.open()
        await there.ended()

        assert [there.checker.attempts(id) for id in after] == [[1]] * 4
        # They had ended, and nobody has their results any more.
        for id in before:
            first_attempt, other = there.checker.attempts(id)
            assert (first_attempt, other > 1000) == (1, True)
        there.checker.check()


async def test_what_was_queued_with_nobody_there_is_taken_up_too(tmp_path: Path) -> None:
    """The backup knows of no job at any client: all seem to be free until they have told, which
    takes one of them a while."""
    async with world(tmp_path, server=ATTEMPTS, client={"SLOTS": "3"}) as there:
        gate = there.gate()
        for client in there.clients:
            await client.stop()
        await there.clients_are_there(0)
        ids = [await there.upload(script=gate.script, large=n % 2 > 0) for n in range(4)]
        done = await command(there.server, "backup", "backup")
        assert done.code == 0, done
        for client, taken in zip(there.clients, (ids[:3], ids[3:]), strict=True):
            await client.start()
            for id in taken:
                await there.begun(id)
        there.proxies[1].add(slow := Rule("state", Delay(1.0)))

        await _lose_and_restore(there)
        await slow.hit.wait()
        gate.open()
        await there.ended()

        assert [there.checker.attempts(id) for id in ids] == [[1]] * 4
        there.checker.check()
