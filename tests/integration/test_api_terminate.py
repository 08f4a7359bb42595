"""POST /terminate: ending a job on request; its client decides what the end is."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.behind_proxy import system_behind_proxy
from support.errors import check_error
from support.faults import Cut, Hold, Rule
from support.gate import Gate
from support.portal import Answer, Portal
from support.states import job_in
from support.system import System, running_system


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A place where run.sh waits."""
    with contextlib.closing(Gate(tmp_path)) as own:
        yield own


async def running(portal: Portal, gate: Gate, before: str = "") -> int:
    """A job whose run.sh has done something and waits."""
    id = await portal.upload(f"{before}\n{gate.wait}\n")
    await gate.reached()
    await portal.reached(id, "Running")
    return id


async def wish_is_kept(portal: Portal, id: int) -> dict[str, Any]:
    """The record of a job once its end has been requested."""
    while not (record := await portal.job(id))["kill_requested"]:
        pass
    return record


def check_killed(answer: Answer, id: int) -> None:
    """200, and the job is Killed."""
    assert answer.status == 200, answer
    assert set(answer.json) == {"id", "status", "message"}
    assert (answer.json["id"], answer.json["status"]) == (id, "Killed")
    assert answer.headers["X-Job-Status"] == "Killed"


async def test_a_queued_job_ends_at_once(tmp_path: Path) -> None:
    """200; it never went to a client, and its record says whose wish it was."""
    async with job_in(tmp_path, "Queued") as job:
        answer = await job.portal.post(f"/terminate/{job.id}")
        record = await job.portal.job(job.id)

    check_killed(answer, job.id)
    assert (record["status"], record["fault"], record["attempt"]) == ("Killed", "operator", 0)
    assert (record["kill_requested"], record["exit_code"]) == (True, None)
    assert record["ended_at"] is not None
    assert [entry["status"] for entry in record["history"]] == ["Queued", "Killed"]


async def test_a_running_job_ends_with_its_process(system: System, gate: Gate) -> None:
    """200 once it is Killed: then run.sh is gone, and what it left is stored."""
    id = await running(system.portal, gate, "echo $$ > pid; echo half > half.txt")
    files = (await system.portal.get(f"/download_partial/{id}")).zip

    check_killed(await system.portal.post(f"/terminate/{id}"), id)

    with pytest.raises(ProcessLookupError):
        os.kill(int(files.read("pid")), 0)
    record = await system.portal.job(id)
    assert (record["status"], record["fault"]) == ("Killed", "operator")
    left = (await system.portal.get(f"/download_partial/{id}")).zip
    assert left.read("half.txt") == b"half\n"


@pytest.mark.parametrize(
    ("trap", "exit_code"),
    [("trap '' TERM", 137), ("trap 'exit 0' TERM", 0), ("trap 'exit 5' TERM", 5)],
)
async def test_what_run_sh_does_with_the_signal_changes_nothing(
    tmp_path: Path, gate: Gate, trap: str, exit_code: int
) -> None:
    """Killed also where it ends well; where it ignores the signal it is killed after KILL_GRACE."""
    grace = 0.2 if exit_code == 137 else 30.0
    async with running_system(tmp_path, client={"kill_grace": grace}) as system:
        id = await running(system.portal, gate, trap)

        check_killed(await system.portal.post(f"/terminate/{id}"), id)
        assert (await system.portal.job(id))["exit_code"] == exit_code


@pytest.mark.parametrize("status", ["Completed", "Failed", "Invalid", "Killed", "Cleaned"])
async def test_a_job_that_has_ended_stays_as_it_is(tmp_path: Path, status: str) -> None:
    """409 that says how it ended; nothing of its record changes."""
    async with job_in(tmp_path, status) as job:
        before = await job.portal.job(job.id)

        answer = await job.portal.post(f"/terminate/{job.id}")

        check_error(answer, 409, id=job.id, state=status)
        assert await job.portal.job(job.id) == before


async def test_two_at_once_are_both_answered(system: System, gate: Gate) -> None:
    """Each gets 200, and the job ends once."""
    id = await running(system.portal, gate)

    answers = await asyncio.gather(*(system.portal.post(f"/terminate/{id}") for _ in range(2)))

    for answer in answers:
        check_killed(answer, id)
    history = (await system.portal.job(id))["history"]
    assert [entry["status"] for entry in history].count("Killed") == 1


async def test_a_client_that_does_not_decide_keeps_nobody_waiting(
    tmp_path: Path, gate: Gate
) -> None:
    """202 after KILL_GRACE + 5 s with the wish kept; Killed once the client has heard of it."""
    hold = Hold()
    async with system_behind_proxy(tmp_path, client={"kill_grace": 0.0}) as (system, proxy):
        portal = system.portal
        id = await running(portal, gate)
        proxy.add(Rule("POST /kill", hold))

        answer = await portal.post(f"/terminate/{id}")

        assert (answer.status, answer.json["id"], answer.json["status"]) == (202, id, "Running")
        assert answer.json["message"].endswith("Its end has been requested.")
        assert answer.headers["X-Job-Status"] == "Running"
        assert (await portal.job(id))["kill_requested"] is True
        hold.go.set()
        assert (await portal.ended(id))["status"] == "Killed"


async def test_a_client_that_is_away_hears_of_it_when_it_is_back(tmp_path: Path) -> None:
    """202 while nobody can be asked; at the next contact the job ends."""
    async with job_in(tmp_path, "Running") as job:
        await job.proxy.down()

        answer = await job.portal.post(f"/terminate/{job.id}")

        assert (answer.status, answer.json["status"]) == (202, "Running")
        await job.proxy.up()
        record = await job.portal.ended(job.id)
        assert (record["status"], record["attempt"]) == ("Killed", 1)


async def test_a_client_that_did_not_hear_is_told_again(tmp_path: Path, gate: Gate) -> None:
    """A request to end a job that is lost on the way is repeated while the caller waits."""
    async with system_behind_proxy(tmp_path, client={"kill_grace": 0.0}) as (system, proxy):
        id = await running(system.portal, gate)
        lost = Rule("POST /kill", Cut(0))
        proxy.add(lost)

        check_killed(await system.portal.post(f"/terminate/{id}"), id)
        assert lost.hits == 1


async def test_a_job_on_its_way_ends_as_soon_as_its_client_has_it(tmp_path: Path) -> None:
    """Processing: the submit's outcome is waited for, then the job is killed, never sent again."""
    async with job_in(tmp_path, "Processing") as job:
        terminating = asyncio.create_task(job.portal.post(f"/terminate/{job.id}"))
        record = await wish_is_kept(job.portal, job.id)
        assert record["status"] == "Processing"
        job.held.go.set()

        check_killed(await terminating, job.id)
        record = await job.portal.job(job.id)

    states = [entry["status"] for entry in record["history"]]
    assert states.count("Processing") == 1
    assert states[-1] == "Killed"


async def test_an_exit_status_that_stands_already_stays(tmp_path: Path) -> None:
    """409 with the end that the job had come to by itself before its client heard of the wish."""
    async with job_in(tmp_path, "Running") as job:
        ends = Rule("state", Hold(), where=lambda message: message.status == "Completed")
        job.proxy.add(ends)
        job.gate.open()
        await ends.hit.wait()
        terminating = asyncio.create_task(job.portal.post(f"/terminate/{job.id}"))
        await wish_is_kept(job.portal, job.id)
        assert isinstance(ends.fault, Hold)
        ends.fault.go.set()

        answer = await terminating

        assert (answer.status, answer.json["status"]) == (409, "Completed")
        assert (await job.portal.get(f"/download/{job.id}")).status == 200
