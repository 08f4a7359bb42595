"""Clients of the original that hang, restart, forget, or give out what is another's."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator_client.config import LegacyWire
from orchestrator_server.api.parameters import WAIT_MOST
from orchestrator_server.store import room
from orchestrator_shared.errors import NoSpace
from support.original_client import OriginalClient, Payload, original_client
from support.portal import Portal
from support.servers import OwnServer, server_of
from support.system import client_config, client_is_there, running_client

BOTH = pytest.mark.parametrize("version", ["v1", "v2"])
#: How often each payload is asked for here (seconds).
OFTEN: dict[str, Any] = {"getter_interval": 0.02}


async def goes(
    portal: Portal, original: OriginalClient, script: str = "true", service: str = "example"
) -> tuple[int, Payload]:
    """Upload a job, and wait until it is there."""
    id = await portal.upload(script, service=service)
    return id, await original.submits.get()


async def stands(server: OwnServer) -> dict[str, Any]:
    """How its first client stands."""
    row: dict[str, Any] = (await server.portal.get("/clients")).json["clients"][0]
    return row


async def test_a_submit_that_outlives_its_stream_is_sent_once(tmp_path: Path) -> None:
    """A client that is busy with it answers nothing else for a time: its answer counts all the
    same, whichever stream is open then."""
    async with original_client("v2") as original:
        original.busy.clear()
        changes = {"client_lost_after": 0.2, **OFTEN}
        async with server_of(tmp_path, [original.base], **changes) as server:
            await client_is_there(server.portal)
            id, payload = await goes(server.portal, original)
            original.fails_load = True
            async with asyncio.timeout(WAIT_MOST):
                while (await stands(server))["state"] == "up":
                    await asyncio.sleep(0.01)
            original.fails_load = False
            original.busy.set()
            await server.portal.reached(id, "Running")
            payload.ends()
            record = await server.portal.ended(id)
            assert (record["status"], record["dest_id"]) == ("Completed", str(payload.id))
            assert original.submits.empty()


@BOTH
async def test_what_is_gone_before_it_is_fetched_is_run_again(tmp_path: Path, version: str) -> None:
    """The client had a zip, was restarted, and knows nothing of it."""
    async with (
        original_client(version) as original,
        server_of(tmp_path, [original.base], **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        id, payload = await goes(server.portal, original)
        original.forgets_once_shown = True
        payload.ends(output=b"the first")
        again = await original.submits.get()
        original.forgets_once_shown = False
        again.ends(output=b"the second")
        record = await server.portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 2)


@BOTH
async def test_exit_statuses_that_blame_the_machine(tmp_path: Path, version: str) -> None:
    """RETRY_EXIT_CODES holds, though only the files show the exit status."""
    service = {"retry_exit_codes": frozenset({75})}
    async with (
        original_client(version) as original,
        server_of(tmp_path, [original.base], service=service, **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        id, payload = await goes(server.portal, original)
        payload.ends(75)
        payload.state = "failed" if version == "v2" else "zip"
        again = await original.submits.get()
        again.ends()
        assert (await server.portal.ended(id))["attempt"] == 2


async def test_an_exit_status_that_is_none(tmp_path: Path) -> None:
    """Thousands of digits: the job ends all the same."""
    async with (
        original_client("v1") as original,
        server_of(tmp_path, [original.base], **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        id, payload = await goes(server.portal, original)
        payload.ends()
        payload.made[".orchestrator.exit"] = b"1" * 5000
        record = await server.portal.ended(id)
        assert (record["status"], record["exit_code"]) == ("Completed", None)


async def test_services_of_one_client_do_not_block_each_other(tmp_path: Path) -> None:
    """It tells no slots: each service has its own limit."""
    async with (
        original_client("v2") as original,
        server_of(
            tmp_path,
            {"a": [original.base], "b": [original.base]},
            service={"max_runs": 1},
            **OFTEN,
        ) as server,
    ):
        await client_is_there(server.portal)
        for service in ("a", "b"):
            await goes(server.portal, original, service=service)


async def test_a_job_without_its_marker_leaves_the_client_in(tmp_path: Path) -> None:
    """After ids have begun again nobody knows whose it is: that job is refused, with the reason,
    and others run."""
    async with (
        original_client("v2") as original,
        server_of(tmp_path, [original.base], **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        await goes(server.portal, original)
        await original.start_again(old_folders=False)
        id, unmarked = await goes(server.portal, original)
        del unmarked.files[".orchestrator.job"]
        unmarked.ends()
        for _ in range(2):  # the one that was lost with the former ids, and this one
            await original.submits.get()
        reasons = [e["reason"] for e in (await server.portal.job(id))["history"] if e["reason"]]
        assert any(".orchestrator.job" in reason for reason in reasons)
        assert (await stands(server))["state"] == "up"


async def test_a_client_that_gave_out_anothers_files_stays_out(tmp_path: Path) -> None:
    """While it knows that payload nothing was done about it; the job has used no attempt."""
    async with (
        original_client("v2") as original,
        server_of(tmp_path, [original.base], service={"max_attempts": 1}, **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        id, payload = await goes(server.portal, original)
        payload.files[".orchestrator.job"] = b'{"server": "x", "job": 1, "attempt": 1}'
        payload.ends()
        record = await server.portal.reached(id, "Queued")
        for _ in range(5):
            await original.seen(f"GET /retrieve/{payload.id}$")
        assert (await stands(server))["state"] == "out"
        assert original.submits.empty()

        del original.held[payload.id]
        again = await original.submits.get()
        again.ends()
        record = await server.portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 2)


@BOTH
@pytest.mark.parametrize("older", [{"server": "x"}, {"attempt": 0}], ids=["server", "attempt"])
async def test_the_marker_of_another_server_or_attempt_is_anothers(
    tmp_path: Path, version: str, older: dict[str, Any]
) -> None:
    """Though the job has the same number."""
    async with (
        original_client(version) as original,
        server_of(tmp_path, [original.base], **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        id, payload = await goes(server.portal, original)
        mark = payload.files[".orchestrator.job"].decode()
        for key, value in older.items():
            old = {"server": mark.split('"')[3], "attempt": "1"}[key]
            mark = mark.replace(f'"{key}": "{old}"', f'"{key}": "{value}"')
            mark = mark.replace(f'"{key}": {old}', f'"{key}": {value}')
        payload.files[".orchestrator.job"] = mark.encode()
        payload.ends()
        record = await server.portal.reached(id, "Queued")
        assert "another job" in record["history"][-1]["reason"]


@pytest.mark.parametrize("wire", [LegacyWire.V1, LegacyWire.V2])
async def test_a_client_of_ours_is_never_taken_for_one(tmp_path: Path, wire: LegacyWire) -> None:
    """LEGACY_WIRE answers servers of the original alone."""
    async with running_client(client_config(tmp_path / "client", legacy_wire=wire)) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base]) as server:
            await client_is_there(server.portal)
            assert (await stands(server))["slots"] == 2
            id = await server.portal.upload("true")
            assert (await server.portal.ended(id))["status"] == "Completed"


async def test_one_bad_answer_cuts_nothing_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that is busy is there yet, and that is no event."""
    async with (
        original_client("v2") as original,
        server_of(tmp_path, [original.base], **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        original.fails_load = True
        for _ in range(3):
            await original.seen("GET /load")
        original.fails_load = False
        await original.seen("GET /load")
        assert (await stands(server))["state"] == "up"
        assert "cut off" not in caplog.text


async def test_no_room_for_a_directory_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """507, and nothing of it stays."""
    async with (
        original_client("v2") as original,
        server_of(tmp_path, [original.base], **OFTEN) as server,
    ):
        await client_is_there(server.portal)
        id, _ = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
        assert (await server.portal.get(f"/download_partial/{id}")).status == 200

        def full(_disk: Path, _least: int) -> None:
            raise NoSpace(problem="too little is left")

        monkeypatch.setattr(room, "check_free_disk", full)
        assert (await server.portal.get(f"/download_partial/{id}")).status == 507
        assert [p for p in (tmp_path / "server" / "tmp").rglob("*") if p.is_file()] == []
