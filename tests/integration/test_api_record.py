"""GET /jobs/<id>: every field of the record, and what it means."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.api.record import at
from orchestrator_shared.portal import HistorySchema, JobSchema
from support.gate import Gate
from support.lonely import lonely_server, service
from support.states import job_in
from support.system import System, running_system

FIELDS = {
    "id", "user_id", "service", "ref", "status", "version", "message", "loc", "dest_id",
    "created_at", "started_at", "ended_at", "expires_at", "attempt", "client", "exit_code",
    "fault", "reason", "stderr_tail", "wall_s", "cpu_s", "max_rss", "input_bytes", "result_bytes",
    "kill_requested", "history", "waiting",
}  # fmt: skip
HISTORY_FIELDS = {"seq", "at", "status", "attempt", "client", "reason"}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A place where run.sh waits."""
    with contextlib.closing(Gate(tmp_path)) as own:
        yield own


def test_the_fields_are_those_that_the_swagger_ui_shows() -> None:
    """The record is made by hand: nothing else compares it with what is documented."""
    assert set(JobSchema().fields) == FIELDS
    assert set(HistorySchema().fields) == HISTORY_FIELDS


def moment(text: str) -> datetime:
    """A time of the record, which is RFC 3339 in UTC."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text), text
    return datetime.fromisoformat(text)


async def test_a_finished_job_has_its_whole_story(system: System) -> None:
    """Whose it is, when, where and how it ran, what it used, and each state it went through."""
    began = datetime.now(UTC).replace(microsecond=0)
    id = await system.portal.upload(
        {"run.sh": "echo note >&2; python3 -c 'x = b\"1\" * 20000000'", "in.txt": "12345"},
        user_id=7,
        ref="mine",
    )
    ended = await system.portal.ended(id)

    record = await system.portal.job(id)

    assert set(record) == FIELDS
    assert ended == record
    base = system.at_client.base
    expected = {
        "id": id, "user_id": 7, "service": "example", "ref": "mine", "status": "Completed",
        "attempt": 1, "client": base, "exit_code": 0, "fault": None, "stderr_tail": "note\n",
        "kill_requested": False, "waiting": None, "reason": "run.sh ended with 0",
        "message": "The job is done and its result can be downloaded: run.sh ended with 0.",
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert Path(record["loc"]).is_absolute()
    times = [moment(record[name]) for name in ("created_at", "started_at", "ended_at")]
    assert times == sorted(times)
    assert began <= times[0] <= times[2] <= datetime.now(UTC)
    assert (moment(record["expires_at"]) - times[2]).total_seconds() == pytest.approx(172800)
    assert record["cpu_s"] > 0
    assert record["wall_s"] > 0
    assert record["max_rss"] > 20_000_000
    assert record["input_bytes"] == len("12345") + len(
        "echo note >&2; python3 -c 'x = b\"1\" * 20000000'"
    )
    assert record["result_bytes"] == len((await system.portal.get(f"/download/{id}")).body)
    assert (await system.at_client.get(f"/retrieve/{record['dest_id']}")).status != 404
    _check_history(record, base)


def _check_history(record: dict[str, Any], client: str) -> None:
    history = record["history"]
    assert all(set(entry) == HISTORY_FIELDS for entry in history)
    assert record["version"] == len(history)
    states = [entry["status"] for entry in history]
    assert states[:2] == ["Queued", "Processing"]
    assert states[-1] == "Completed"
    assert [entry["attempt"] for entry in history] == [0] + [1] * (len(history) - 1)
    assert [entry["client"] for entry in history] == [None] + [client] * (len(history) - 1)
    numbers = [entry["seq"] for entry in history]
    assert numbers == sorted(set(numbers))
    times = [moment(entry["at"]) for entry in history]
    assert times == sorted(times)
    assert history[0]["at"] == record["created_at"]
    assert history[-1]["at"] == record["ended_at"]


async def test_a_queued_job_has_nothing_to_tell_yet(tmp_path: Path) -> None:
    """What is not known is null; what it waits for is said."""
    async with lonely_server(tmp_path) as lonely:
        answer = await lonely.portal.get(f"/jobs/{await lonely.portal.upload('true')}")

    record = answer.json
    assert answer.headers["X-Job-Status"] == "Queued"
    assert set(record) == FIELDS
    empty = (
        "ref", "started_at", "ended_at", "expires_at", "client", "exit_code", "fault", "reason",
        "stderr_tail", "wall_s", "cpu_s", "max_rss", "result_bytes",
    )  # fmt: skip
    assert {name: record[name] for name in empty} == dict.fromkeys(empty)
    assert (record["attempt"], record["dest_id"], record["version"]) == (0, "", 1)
    assert (record["input_bytes"], record["kill_requested"]) == (4, False)
    assert [entry["status"] for entry in record["history"]] == ["Queued"]
    assert record["waiting"]["code"] == "no_client"


@pytest.mark.parametrize("status", ["Processing", "Submitted", "Running", "Unknown"])
async def test_a_job_at_a_client_says_where_it_is(tmp_path: Path, status: str) -> None:
    """Client and attempt from the moment it is sent; its payload and start once they are known."""
    async with job_in(tmp_path, status) as job:
        record = await job.portal.job(job.id)
        client = job.proxy.url

    assert (record["client"], record["attempt"]) == (client, 1)
    assert record["dest_id"].isdigit() == (status != "Processing")
    assert (record["started_at"] is not None) == (status in ("Running", "Unknown"))
    assert (record["ended_at"], record["expires_at"], record["waiting"]) == (None, None, None)
    assert (client in (record["reason"] or "")) == (status == "Unknown")


@pytest.mark.parametrize(
    ("run", "exit_code", "fault", "says"),
    [
        ("exit 1", 1, "user", "status 1"),
        ("exit 255", 255, "user", "status 255"),
        ("kill -SEGV $$", 139, "user", "signal 11"),
        (
            "kill -KILL $$",
            137,
            "infrastructure",
            "SIGKILL",
        ),  # as the system does where memory is short
    ],
)
async def test_the_exit_code_tells_a_status_from_a_signal(
    system: System, run: str, exit_code: int, fault: str, says: str
) -> None:
    """0 to 255 as run.sh said, 128 + n where signal n ended it; and whose fault it is."""
    record = await system.portal.ended(await system.portal.upload(run))

    assert (record["status"], record["exit_code"], record["fault"]) == ("Failed", exit_code, fault)
    assert says in record["reason"]
    assert record["reason"].rstrip(".") in record["message"]


async def test_a_job_without_run_sh_says_so(system: System) -> None:
    """Invalid: its user's fault, and nothing ran."""
    record = await system.portal.ended(await system.portal.upload({"job.sh": "true"}))

    assert (record["status"], record["fault"], record["exit_code"]) == ("Invalid", "user", None)
    assert "run.sh" in record["reason"]


async def test_a_job_that_takes_too_long_is_at_fault_by_a_limit(tmp_path: Path, gate: Gate) -> None:
    """Failed, `limit`, and a reason that names it."""
    async with running_system(tmp_path, client={"job_timeout": 0.2}) as system:
        record = await system.portal.ended(await system.portal.upload(gate.wait))

    assert (record["status"], record["fault"]) == ("Failed", "limit")
    assert "0.2" in record["reason"]


async def test_the_tail_of_stderr_is_its_last_4_kib(system: System) -> None:
    """However much was printed, and however it ended; the whole of it is in the zip."""
    run = "for n in $(seq 1000); do echo line $n >&2; done; exit 1"
    id = await system.portal.upload(run)

    record = await system.portal.ended(id)

    whole = (await system.portal.get(f"/download_partial/{id}")).zip.read(
        ".orchestrator/stderr.log"
    )
    assert record["stderr_tail"] == whole[-4096:].decode()


async def test_how_long_files_are_kept_is_the_services_own(tmp_path: Path) -> None:
    """`expires_at` is the end and SERVICE_<NAME>_MAX_AGE, or MAX_AGE where it has none."""
    kept = {"example": 3600.0, "other": 1e15}
    services = [service(name, max_age=age) for name, age in kept.items()]
    async with lonely_server(tmp_path, *services, max_age=7200.0) as lonely:
        ages = {}
        for name in kept:
            id = await lonely.portal.upload("true", service=name)
            await lonely.portal.post(f"/terminate/{id}")
            record = await lonely.portal.job(id)
            ages[name] = moment(record["expires_at"]) - moment(record["ended_at"])

    assert ages["example"].total_seconds() == 3600
    assert ages["other"].days > 7000 * 365


def test_times_are_written_to_the_millisecond_in_utc() -> None:
    """RFC 3339; none where there is none; for what no calendar can hold the last that one can."""
    assert at(0.0) == "1970-01-01T00:00:00.000Z"
    assert at(1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"
    assert at(1e18) == "9999-12-31T23:59:59.000Z"
    assert at(None) is None


async def test_a_wish_is_shown_beside_the_reason(tmp_path: Path) -> None:
    """A message says why a job stands as it does, and that its end was requested."""
    async with job_in(tmp_path, "Unknown") as job:
        terminating = asyncio.create_task(job.portal.post(f"/terminate/{job.id}"))
        while not (record := await job.portal.job(job.id))["kill_requested"]:
            pass
        await job.proxy.up()
        await terminating

    assert record["message"] == (
        "The job's client or its result cannot be reached just now; it goes on as soon as they "
        f"can: {record['reason']}. Its end has been requested."
    )


@pytest.mark.parametrize("large", [0, 100_000], ids=["small", "large"])
async def test_the_uploaded_files_are_named_with_their_digests(system: System, large: int) -> None:
    """Where they are asked for; until they are removed."""
    files = {"run.sh": b"true", "in": b"x" * large}
    id = await system.portal.upload(files)
    assert "inputs" not in await system.portal.job(id)
    assert (await system.portal.job(id, inputs="true"))["inputs"] == [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    await system.portal.ended(id)
    await system.portal.request("DELETE", f"/jobs/{id}")
    assert (await system.portal.job(id, inputs="true"))["inputs"] is None
