"""A result arrives whole or not at all: what is damaged or cut short is never served."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from orchestrator_server.tasks import getter
from support.servers import server_of
from support.standin import (
    Answer,
    Held,
    StandIn,
    cut_in_the_middle,
    damaged,
    running_stand_in,
    serve,
)
from support.system import client_config, client_is_there, running_client

RESULT = random.Random(1).randbytes(3_000_000)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """A client that is told what to say."""
    async with running_stand_in() as running:
        yield running


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that could not be fetched is tried again at once."""
    monkeypatch.setattr(getter, "AGAIN_FIRST", 0.01)


async def _short(_stand_in: StandIn, _request: web.Request, held: Held) -> web.Response:
    """Less than there is, in an answer that looks whole."""
    return web.Response(body=held.result[:1000])


async def _long(_stand_in: StandIn, _request: web.Request, held: Held) -> web.Response:
    """More than there is."""
    return web.Response(body=held.result + b"more")


async def _empty(_stand_in: StandIn, request: web.Request, _held: Held) -> web.Response:
    """Nothing, in an answer that looks right."""
    return web.Response(status=206 if "Range" in request.headers else 200)


async def _failing(_stand_in: StandIn, _request: web.Request, _held: Held) -> web.Response:
    return web.Response(status=500)


@pytest.mark.parametrize(
    "faults",
    [[damaged], [_long], [_short, _empty, _empty, _empty], [_empty] * 3, [_failing]],
    ids=["damaged", "long", "short", "empty", "failing"],
)
async def test_what_is_damaged_is_fetched_again(
    stand_in: StandIn, tmp_path: Path, faults: list[Answer]
) -> None:
    """The job waits as Unknown, nothing wrong is served, and no attempt is used."""
    stand_in.faults = list(faults)
    async with server_of(
        tmp_path, [stand_in.base], service={"max_attempts": 1}, getter_interval=0.05
    ) as server:
        portal = server.portal
        await client_is_there(portal)
        id = await portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, RESULT)

        record = await portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 1)
        assert "Unknown" in [entry["status"] for entry in record["history"]]
        answer = await portal.get(f"/download/{id}")
        assert answer.body == RESULT
        assert record["result_bytes"] == len(RESULT)
        assert await stand_in.acknowledged.get() == (id, 1)
        assert list((tmp_path / "server" / "tmp").glob("*/*")) == []


async def test_a_small_result_that_came_damaged_is_fetched(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """What came along on the stream is checked like any other."""
    async with server_of(tmp_path, [stand_in.base], getter_interval=0.05) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, b"right" * 10, along=b"wrong" * 10)
        assert (await server.portal.ended(id))["status"] == "Completed"
        assert (await server.portal.get(f"/download/{id}")).body == b"right" * 10


async def test_a_completed_job_has_a_result(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that tells of the end but of no result is not believed until it does."""
    monkeypatch.setattr(getter, "AGAIN_FIRST", 3600.0)
    async with server_of(tmp_path, [stand_in.base], getter_interval=0.05) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held)
        await server.portal.reached(id, "Unknown")
        await stand_in.ends(held, b"x" * 100)
        assert (await server.portal.ended(id))["result_bytes"] == 100


@pytest.mark.parametrize("attempts", [1, 2])
async def test_five_times_damaged_is_lost(
    stand_in: StandIn, tmp_path: Path, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client answers, but never with the bytes that it packed."""
    monkeypatch.setattr(getter, "AGAIN_MOST", 0.01)
    stand_in.faults = [damaged] * 5
    service = {"max_attempts": attempts}
    async with server_of(
        tmp_path, [stand_in.base], service=service, getter_interval=0.05
    ) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, RESULT)
        assert await stand_in.acknowledged.get() == (id, 1)
        assert len(stand_in.ranges) == 5
        if attempts == 1:
            record = await server.portal.ended(id)
            assert (record["status"], record["fault"]) == ("Failed", "infrastructure")
            assert "damaged" in record["reason"]
        else:
            again = await stand_in.takes()
            await stand_in.ends(again, RESULT)
            record = await server.portal.ended(id)
            assert (record["status"], record["attempt"]) == ("Completed", 2)


@pytest.mark.parametrize("cuts", [1, 3])
async def test_a_transfer_that_breaks_is_gone_on_with(
    stand_in: StandIn, tmp_path: Path, cuts: int
) -> None:
    """From the first byte that is missing, as often as it gets further."""
    stand_in.faults = [cut_in_the_middle] * cuts
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        held = await stand_in.takes()
        await stand_in.ends(held, RESULT)
        record = await server.portal.ended(id)
        assert record["status"] == "Completed"
        assert "Unknown" not in [entry["status"] for entry in record["history"]]
        answer = await server.portal.get(f"/download/{id}")
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(RESULT).digest()
    first, *others = [int((asked or "bytes=0-")[6:-1]) for asked in stand_in.ranges]
    assert first == 0
    assert len(others) == cuts
    assert all(0 < start < len(RESULT) for start in others)
    assert others == sorted(others)


async def test_the_server_ends_in_the_middle_of_a_transfer(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """After the restart it is fetched anew; of the first try nothing is left."""
    begun = asyncio.Event()

    async def never_ends(
        _stand_in: StandIn, request: web.Request, held: Held
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(held.result)
        await response.prepare(request)
        await response.write(held.result[:1_000_000])
        begun.set()
        await asyncio.Event().wait()
        return response

    stand_in.faults = [never_ends]
    async with server_of(tmp_path, [stand_in.base]) as server:
        await client_is_there(server.portal)
        id = await server.portal.upload("true")
        await stand_in.ends(await stand_in.takes(), RESULT)
        await begun.wait()
    async with server_of(tmp_path, [stand_in.base]) as server:
        assert (await server.portal.ended(id))["status"] == "Completed"
        assert (await server.portal.get(f"/download/{id}")).body == RESULT
        assert len(list((tmp_path / "server" / "tmp").iterdir())) == 1


async def test_results_of_one_client_do_not_wait_for_those_of_another(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """However many transfers of the first hang."""

    async def hangs(_stand_in: StandIn, _request: web.Request, held: Held) -> web.StreamResponse:
        await go_on.wait()
        return serve(_request, held.result)

    go_on = asyncio.Event()
    stand_in.slots = 20
    async with (
        running_stand_in(instance="0" * 31 + "2", slots=1) as other,
        server_of(tmp_path, [stand_in.base, other.base], service={"runs_per_user": 30}) as server,
    ):
        await client_is_there(server.portal, 2)
        stand_in.faults = [hangs] * 20
        hanging = [await server.portal.upload("true") for _ in range(19)]
        for _ in hanging:
            await stand_in.ends(await stand_in.takes(), b"x" * 1000)
        ids = {await server.portal.upload("true") for _ in range(2)}
        held = await other.takes()
        assert held.job in ids
        await other.ends(held, RESULT)
        assert (await server.portal.ended(held.job))["status"] == "Completed"
        go_on.set()
        for id in hanging:
            await server.portal.ended(id)


@pytest.mark.parametrize("size", [10, 200_000], ids=["small", "large"])
async def test_results_wait_while_the_disk_is_full(tmp_path: Path, size: int) -> None:
    """Unknown with the reason, no attempt used; it goes on once MIN_FREE_DISK remains."""
    run = f"head -c {size} /dev/urandom > noise"
    async with running_client(client_config(tmp_path / "client")) as client:
        base = str(client.make_url("")).rstrip("/")
        async with server_of(tmp_path, []) as server:
            id = await server.portal.upload(run)
        async with server_of(tmp_path, [base], min_free_disk=2**60, getter_interval=0.05) as server:
            record = await server.portal.reached(id, "Unknown")
            assert "MIN_FREE_DISK" in record["reason"]
            assert (await server.portal.get("/health")).status == 503
            assert (await server.portal.try_upload({"run.sh": "true"})).status == 507
        async with server_of(
            tmp_path, [base], service={"max_attempts": 1}, getter_interval=0.05
        ) as server:
            record = await server.portal.ended(id)
            assert (record["status"], record["attempt"]) == ("Completed", 1)
            assert len((await server.portal.result(id)).read("noise")) == size
