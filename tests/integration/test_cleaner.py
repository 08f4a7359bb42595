"""7, clean: files go after their time, the record stays, and nothing else is touched."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.keys import CLEANER
from support.gate import Gate
from support.portal import Portal
from support.servers import server_of, server_with, services
from support.standin import running_stand_in
from support.system import client_config, client_is_there, running_client

#: Larger than what stands in the database.
LARGE = 100_000


async def _done(portal: Portal, **options: Any) -> dict[str, Any]:
    """A job with files of its own on both sides, once it has ended."""
    id = await portal.upload(
        {"run.sh": "head -c 100000 /dev/urandom > noise", "filler": b"x" * LARGE}, **options
    )
    record = await portal.ended(id)
    assert record["status"] == "Completed"
    return record


async def _gone(*folders: Path) -> None:
    """Wait until nothing is left in these folders."""
    while any(list(folder.iterdir()) for folder in folders):
        await asyncio.to_thread(os.sched_yield)


async def test_files_go_after_max_age_and_the_record_stays(tmp_path: Path) -> None:
    """Cleaned remembers which end it was; a job that is young is left alone."""
    async with running_client(client_config(tmp_path / "client")) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base]) as server:
            await client_is_there(server.portal)
            old = await _done(server.portal, ref="mine")
            assert await server.app[CLEANER].run_once() == 0
            assert (Path(old["loc"]) / "result-1.zip").exists()
        async with server_of(
            tmp_path, [base], service={"max_age": 0.0}, cleaner_interval=0.05
        ) as server:
            record = await server.portal.reached(old["id"], "Cleaned")
            await _gone(tmp_path / "server" / "jobs")
            assert record["ref"] == "mine"
            assert record["exit_code"] == 0
            assert record["ended_at"] == old["ended_at"]
            answer = await server.portal.get(f"/download/{old['id']}")
            assert (answer.status, answer.headers["X-Job-Status"]) == (204, "Cleaned")


async def test_each_service_has_an_age_of_its_own(tmp_path: Path) -> None:
    """And what no setting names any more goes by MAX_AGE."""
    async with running_client(client_config(tmp_path / "client")) as client:
        base = str(client.make_url("")).rstrip("/")
        names = ("gone", "long", "short")
        async with server_of(tmp_path, {name: [base] for name in names}) as server:
            await client_is_there(server.portal)
            ids = {name: (await _done(server.portal, service=name))["id"] for name in names}
        configured = services({"long": [base]}, max_age=1000.0)
        configured |= services({"short": [base]}, max_age=0.0)
        async with server_with(tmp_path, configured, max_age=0.0) as server:
            await server.app[CLEANER].run_once()
            states = {name: (await server.portal.job(id))["status"] for name, id in ids.items()}
            assert states == {"gone": "Cleaned", "long": "Completed", "short": "Cleaned"}


async def test_a_job_that_still_runs_is_never_cleaned(tmp_path: Path) -> None:
    """Age counts from the end."""
    gate = Gate(tmp_path)
    async with (
        running_client(client_config(tmp_path / "client")) as client,
        server_of(
            tmp_path, [str(client.make_url("")).rstrip("/")], service={"max_age": 0.0}
        ) as server,
    ):
        await client_is_there(server.portal)
        id = await server.portal.upload(gate.wait)
        queued = await server.portal.upload("true", service="example", user_id=2)
        await gate.reached()
        assert (await server.portal.ended(queued))["status"] in ("Completed", "Cleaned")
        await server.app[CLEANER].run_once()
        assert (await server.portal.job(id))["status"] == "Running"
        gate.open()
        assert (await server.portal.reached(id, "Completed", "Cleaned"))["exit_code"] == 0
    gate.close()


@pytest.mark.parametrize("size", [10, LARGE], ids=["small", "large"])
async def test_a_deleted_job_is_ended_and_leaves_no_files(tmp_path: Path, size: int) -> None:
    """While it runs: it is Killed, then Cleaned, here and at its client."""
    gate = Gate(tmp_path)
    async with (
        running_client(client_config(tmp_path / "client", kill_grace=0.2)) as client,
        server_of(tmp_path, [str(client.make_url("")).rstrip("/")]) as server,
    ):
        portal = server.portal
        await client_is_there(portal)
        id = await portal.upload({"run.sh": f"{gate.wait}; true", "filler": b"x" * size})
        await gate.reached()
        await portal.reached(id, "Running")

        answer = await portal.request("DELETE", f"/jobs/{id}")

        assert answer.status in (200, 202)
        record = await portal.reached(id, "Cleaned")
        assert [entry["status"] for entry in record["history"]][-2:] == ["Killed", "Cleaned"]
        await _gone(
            *(tmp_path / name for name in ("server/jobs", "client/payloads", "client/work"))
        )
    gate.close()


async def test_a_wish_to_delete_is_granted_when_the_client_is_back(tmp_path: Path) -> None:
    """As soon as the job has ended: nobody waits for the next look of the Cleaner."""
    async with running_stand_in() as stand_in:
        async with server_of(tmp_path, [stand_in.base], cleaner_interval=3600.0) as server:
            await client_is_there(server.portal)
            id = await server.portal.upload({"run.sh": "true", "filler": b"x" * LARGE})
            held = await stand_in.takes()
            await stand_in.runs(held)
            await server.portal.reached(id, "Running")
            wish = asyncio.create_task(server.portal.request("DELETE", f"/jobs/{id}"))
            assert await stand_in.kills.get() == (id, 1)
        # Whoever asked gets an answer when the server stops; the wish is what matters here.
        await asyncio.wait({wish})
        async with server_of(tmp_path, [stand_in.base], cleaner_interval=3600.0) as server:
            assert await stand_in.kills.get() == (id, 1)
            await stand_in.ends(held, b"x" * LARGE, status="Killed", exit_code=143)
            await server.portal.reached(id, "Cleaned")
            await _gone(tmp_path / "server" / "jobs")
            assert stand_in.ranges == []
