"""DELETE /jobs/<id>: a job ends if need be, and its files go, here and at its client."""

import asyncio
import os
from pathlib import Path

import pytest

from orchestrator_client import keys as client_keys
from support.errors import check_error
from support.portal import Answer, Portal
from support.states import job_in
from support.system import System


def check_cleaned(answer: Answer, id: int, status: int = 200) -> None:
    """The answer says that the job is Cleaned."""
    assert answer.status == status, answer
    assert set(answer.json) == {"id", "status", "message"}
    assert (answer.json["id"], answer.json["status"]) == (id, "Cleaned")
    assert answer.headers["X-Job-Status"] == "Cleaned"


async def client_dropped(system: System, payload: int) -> None:
    """Wait until a client has dropped a payload: it says so, and has no files of it."""
    while (await system.at_client.get(f"/retrieve_partial/{payload}")).status != 404:
        pass
    folder = Path(system.client[client_keys.RUNNER].workdir(payload).job).parent
    while folder.exists():
        await system.at_client.get("/live")


async def states(portal: Portal, id: int) -> list[str]:
    """The states that a job went through."""
    return [entry["status"] for entry in (await portal.job(id))["history"]]


@pytest.mark.parametrize("status", ["Completed", "Failed", "Invalid", "Killed"])
async def test_the_files_of_an_ended_job_go(tmp_path: Path, status: str) -> None:
    """200; its result is gone, its record stays and still tells how it ended."""
    async with job_in(tmp_path, status) as job:
        before = await job.portal.job(job.id)

        answer = await job.portal.request("DELETE", f"/jobs/{job.id}")

        check_cleaned(answer, job.id)
        after = await job.portal.job(job.id)
        assert (await states(job.portal, job.id))[-2:] == [status, "Cleaned"]
        for field in ("ended_at", "exit_code", "fault", "stderr_tail", "wall_s", "attempt", "ref"):
            assert after[field] == before[field]
        assert after["version"] == before["version"] + 1
        for path in ("download", "download_partial"):
            assert (await job.portal.get(f"/{path}/{job.id}")).status == 204
        await client_dropped(job.system, int(before["dest_id"]))


async def test_large_files_are_gone_from_the_disk(system: System) -> None:
    """Inputs and result of a job that has files of its own: its folder is removed."""
    portal = system.portal
    id = await portal.upload({"run.sh": "cp in.bin out.bin", "in.bin": os.urandom(100_000)})
    folder = Path((await portal.ended(id))["loc"])
    assert len(list(folder.iterdir())) == 2

    check_cleaned(await portal.request("DELETE", f"/jobs/{id}"), id)

    assert not folder.exists()


async def test_a_queued_job_is_killed_first(tmp_path: Path) -> None:
    """200: it never goes to a client."""
    async with job_in(tmp_path, "Queued") as job:
        check_cleaned(await job.portal.request("DELETE", f"/jobs/{job.id}"), job.id)

        assert await states(job.portal, job.id) == ["Queued", "Killed", "Cleaned"]


@pytest.mark.parametrize("status", ["Submitted", "Running"])
async def test_a_job_at_a_client_is_killed_first(tmp_path: Path, status: str) -> None:
    """200 once it has ended; its client drops its files too."""
    async with job_in(tmp_path, status) as job:
        payload = int((await job.portal.job(job.id))["dest_id"])
        deleting = asyncio.create_task(job.portal.request("DELETE", f"/jobs/{job.id}"))
        while not (await job.portal.job(job.id))["kill_requested"]:
            pass
        job.held.go.set()

        check_cleaned(await deleting, job.id)
        assert (await states(job.portal, job.id))[-2:] == ["Killed", "Cleaned"]
        await client_dropped(job.system, payload)


@pytest.mark.parametrize("status", ["Completed", "Cleaned"])
async def test_a_job_can_be_deleted_again(tmp_path: Path, status: str) -> None:
    """200 each time, and nothing more happens."""
    async with job_in(tmp_path, status) as job:
        await job.portal.request("DELETE", f"/jobs/{job.id}")
        before = await job.portal.job(job.id)

        check_cleaned(await job.portal.request("DELETE", f"/jobs/{job.id}"), job.id)
        assert await job.portal.job(job.id) == before


async def test_what_a_client_holds_goes_at_the_next_contact(tmp_path: Path) -> None:
    """202 while it is away: then the job is killed, and its files go on both sides."""
    async with job_in(tmp_path, "Running") as job:
        payload = int((await job.portal.job(job.id))["dest_id"])
        await job.proxy.down()

        answer = await job.portal.request("DELETE", f"/jobs/{job.id}")

        assert (answer.status, answer.json["id"], answer.json["status"]) == (202, job.id, "Running")
        assert answer.headers["X-Job-Status"] == "Running"
        await job.proxy.up()
        await job.portal.reached(job.id, "Cleaned")
        assert (await states(job.portal, job.id))[-2:] == ["Killed", "Cleaned"]
        await client_dropped(job.system, payload)


async def test_another_users_job_is_left_alone(tmp_path: Path) -> None:
    """404, and it runs on."""
    async with job_in(tmp_path, "Running") as job:
        answer = await job.portal.request("DELETE", f"/jobs/{job.id}?user_id=8")

        check_error(answer, 404, f"There is no job {job.id}", id=job.id)
        job.gate.open()
        assert (await job.portal.ended(job.id))["status"] == "Completed"
