"""What is sent along with a job: digests, limits, numbers of attempts; and what is made of them."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_server.clients import endpoint
from orchestrator_server.keys import FILES, RECORDS
from support.portal import Files
from support.servers import server_of
from support.standin import StandIn, running_stand_in
from support.system import client_config, client_is_there, running_client

SMALL: Files = {"run.sh": "true", "in": "some"}
LARGE: Files = {"run.sh": "true", "in": b"x" * 100_000}
SIZES = pytest.mark.parametrize("files", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one; each further one is twice as long."""
    monkeypatch.setattr(endpoint, "BACKOFF_FIRST", 0.05)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """A client that is told what to say."""
    async with running_stand_in() as running:
        yield running


async def test_the_digest_of_each_file_goes_along(stand_in: StandIn, tmp_path: Path) -> None:
    """On the stream, for the client to check."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        await server.portal.upload(SMALL)
        held = await stand_in.takes()
        contents = [held.input[:4], held.input[4:]]
        assert [(f["name"], f["sha256"]) for f in held.files] == [
            (name, hashlib.sha256(content).hexdigest())
            for name, content in zip(SMALL, contents, strict=True)
        ]


@SIZES
async def test_what_was_damaged_on_the_way_is_sent_again(
    stand_in: StandIn, tmp_path: Path, files: Files
) -> None:
    """What lies at the server is as it was uploaded: no attempt is used up."""
    stand_in.refusal = {
        "transient": True, "disk": False, "damaged": True, "message": "its SHA-256 differs"
    }  # fmt: skip
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(files)
        assert await stand_in.submits.get() == (id, 1)
        assert "SHA-256" in (await server.portal.reached(id, "Queued"))["message"]
        stand_in.refusal = None
        await stand_in.ends(await stand_in.takes(), b"zip", inline=True)
        assert (await server.portal.ended(id))["status"] == "Completed"


async def test_input_that_is_damaged_at_the_server_ends_its_job(tmp_path: Path) -> None:
    """A byte of it has flipped on the disk: a real client refuses it, and it is looked at here."""
    async with (
        server_of(tmp_path, ["http://127.0.0.1:9"]) as server,
    ):
        id = await server.portal.upload(LARGE)
        job = await server.app[RECORDS].get(id)
        path = server.app[FILES].input_folder(job.folder) / "in"
        path.write_bytes(b"x" * 99_999 + b"y")
    async with (
        running_client(client_config(tmp_path / "client")) as client,
        server_of(tmp_path, [str(client.make_url("")).rstrip("/")]) as server,
    ):
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert record["reason"].startswith("input damaged: 'in'")


@SIZES
async def test_the_time_limit_of_the_service_goes_along(
    stand_in: StandIn, tmp_path: Path, files: Files
) -> None:
    """For the client to enforce."""
    async with server_of(tmp_path, [stand_in.base], service={"max_runtime": 90.0}) as server:
        await client_is_there(server.portal)
        await server.portal.upload(files)
        assert (await stand_in.takes()).limit_s == 90.0


@SIZES
async def test_a_client_that_has_a_later_attempt_raises_it(
    stand_in: StandIn, tmp_path: Path, files: Files
) -> None:
    """The server was restored, and knows of fewer: the next number is above all that were."""
    stand_in.refusal = {"transient": False, "disk": False, "held": 6, "message": "older"}
    async with server_of(tmp_path, [stand_in.base], service={"max_attempts": 1}) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(files)
        assert await stand_in.submits.get() == (id, 1)
        stand_in.refusal = None
        while (held := await stand_in.takes()).attempt == 1:
            pass
        assert held.attempt == 7
        await stand_in.ends(held, b"zip", inline=True)
        record = await server.portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 7)


async def test_a_chosen_exit_status_is_tried_again(stand_in: StandIn, tmp_path: Path) -> None:
    """RETRY_EXIT_CODES: it is a fault of the infrastructure; in the end its files are kept."""
    service = {"max_attempts": 2, "retry_exit_codes": frozenset({75})}
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(SMALL)
        for attempt in (1, 2):
            held = await stand_in.takes()
            assert held.attempt == attempt
            await stand_in.ends(
                held, b"zip", inline=True, status="Failed", exit_code=75, fault="user"
            )
        record = await server.portal.ended(id)
        assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
        assert (record["exit_code"], record["result_bytes"]) == (75, 3)
        assert "RETRY_EXIT_CODES" in record["reason"]
        assert stand_in.submits.empty()


@pytest.mark.parametrize("fault", ["user", "limit"])
async def test_what_is_not_the_infrastructure_s_fault_is_not_tried_again(
    stand_in: StandIn, tmp_path: Path, fault: str
) -> None:
    """It would only fail again."""
    service = {"retry_exit_codes": frozenset({75})}
    async with server_of(tmp_path, [stand_in.base], service=service) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(SMALL)
        await stand_in.ends(await stand_in.takes(), status="Failed", exit_code=1, fault=fault)
        record = await server.portal.ended(id)
        assert (record["attempt"], record["fault"]) == (1, fault)


async def test_a_fault_of_the_infrastructure_is_tried_again(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """run.sh was killed from outside."""
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload(SMALL)
        await stand_in.ends(await stand_in.takes(), status="Failed", exit_code=137,
                            fault="infrastructure", reason="killed from outside")  # fmt: skip
        await stand_in.ends(await stand_in.takes(), b"zip", inline=True)
        record = await server.portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 2)
