"""What is one transaction, and what one change, of a job's way."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from orchestrator_server.signals import Signals
from orchestrator_server.store import database as module
from orchestrator_server.store.database import Row
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_shared.uploads import ReceivedFile, Upload
from support.gate import Gate
from support.servers import server_of
from support.standin import running_stand_in
from support.store import open_database
from support.system import client_is_there, running_system


async def test_a_new_job_is_what_its_row_says(tmp_path: Path) -> None:
    """The upload's answer is made without reading the row."""
    upload = Upload(files=[ReceivedFile("run.sh", 4, "a" * 64)], body=b"true")
    async with open_database(tmp_path / "db.sqlite") as database:
        job, new = await Jobs(database).insert(
            upload, user_id=7, service="example", ref="mine", folder="f" * 32, key="once"
        )
        assert new
        assert await Records(database).get(job.id) == job


async def test_an_end_lets_the_next_job_go_in_the_same_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot is not free for longer than its end takes."""
    groups: list[list[tuple[int, str]]] = []
    original = Signals.on_commit

    def look(self: Signals, changes: Sequence[Row], dispatched: Collection[str]) -> None:
        groups.append([(change["job"], change["new"]) for change in changes])
        original(self, changes, dispatched)

    monkeypatch.setattr(Signals, "on_commit", look)
    gate = Gate(tmp_path)
    async with running_system(tmp_path, client={"slots": 1}) as system:
        first = await system.portal.upload(gate.wait)
        await gate.reached()
        second = await system.portal.upload("true")
        gate.open()
        await system.portal.ended(second)
    gate.close()

    (group,) = [group for group in groups if (first, "Completed") in group]
    assert (second, "Processing") in group


async def test_what_ends_before_it_is_written_that_it_runs_is_one_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For whoever follows it, too."""
    monkeypatch.setattr(module, "HOLD", 3600.0)
    async with (
        running_stand_in() as stand_in,
        server_of(tmp_path, [stand_in.base]) as server,
    ):
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.runs(held)
        await stand_in.ends(held, b"zip", inline=True)
        record = await server.portal.ended(id)

    states = [entry["status"] for entry in record["history"]]
    assert states == ["Queued", "Processing", "Completed"]
