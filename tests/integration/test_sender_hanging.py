"""A client that hangs holds up neither another client nor another service, nor the end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from support.servers import server_of
from support.standin import running_stand_in
from support.system import client_config, client_is_there, running_client


@contextlib.asynccontextmanager
async def _client(tmp_path: Path) -> AsyncIterator[str]:
    """The base URL of a client that works."""
    async with running_client(client_config(tmp_path / "client", slots=2)) as client:
        yield str(client.make_url("")).rstrip("/")


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a connection, and say nothing on it."""
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


@contextlib.asynccontextmanager
async def _mute() -> AsyncIterator[str]:
    """A client that takes every connection, and no more."""
    listener = await asyncio.start_server(_swallow, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    """A client that says who it is, and no more."""
    async with running_stand_in(lists=False) as stand_in:
        yield stand_in.base


@pytest.mark.parametrize("hanging", [_mute, _silent])
async def test_a_client_that_says_nothing_gets_nothing(
    hanging: Callable[[], contextlib.AbstractAsyncContextManager[str]], tmp_path: Path
) -> None:
    """The other client of its service, and other services, run their jobs as ever."""
    async with hanging() as mute, _client(tmp_path) as base:
        clients = {"shared": [mute, base], "own": [base]}
        async with server_of(tmp_path, clients) as server:
            await client_is_there(server.portal)
            for service in ("shared", "own") * 3:
                id = await server.portal.upload("true", service=service)
                record = await server.portal.ended(id)
                assert (record["status"], record["client"]) == ("Completed", base)
            assert (await server.portal.get("/health")).status == 200


async def test_a_client_that_falls_silent_uses_up_no_quota(tmp_path: Path) -> None:
    """What it was sent counts while it is there; once it is lost, others go on."""
    async with (
        running_stand_in(slots=4, answers=False) as silent,
        _client(tmp_path) as base,
        server_of(
            tmp_path,
            {"shared": [silent.base, base], "own": [base]},
            service={"max_runs": 2},
            client_lost_after=1.0,
        ) as server,
    ):
        portal = server.portal
        await client_is_there(portal, 2)
        silent.greets = silent.lists = False
        stuck = [await portal.upload("true", service="shared") for _ in range(2)]
        for id in stuck:
            assert (await portal.reached(id, "Processing"))["client"] == silent.base
        waiting = await portal.upload("true", service="shared", user_id=2)
        assert (await portal.ended(await portal.upload("true", service="own")))["client"] == base

        assert (await portal.ended(waiting))["client"] == base
        # Nobody knows whether it has those: they stay with it.
        for id in stuck:
            assert (await portal.job(id))["attempt"] == 1


async def test_a_client_that_reads_nothing_is_given_up_too(tmp_path: Path) -> None:
    """Frames pile up on the way to it; its stream is opened anew all the same."""
    async with (
        running_stand_in(slots=200, reads=False) as deaf,
        server_of(
            tmp_path,
            [deaf.base],
            service={"runs_per_user": 200},
            client_lost_after=1.0,
        ) as server,
    ):
        await client_is_there(server.portal)
        await deaf.streams.get()
        for _ in range(120):
            await server.portal.upload({"run.sh": "true", "filler": b"x" * 60_000})
        async with asyncio.timeout(20):
            await deaf.streams.get()


@pytest.mark.parametrize("greets", [False, True])
async def test_the_server_stops_though_a_client_hangs(greets: bool, tmp_path: Path) -> None:
    """Within 5 seconds, with a stream that nobody answers and a transfer that nobody takes."""
    async with (
        running_stand_in(slots=200, greets=greets, lists=greets, reads=False) as deaf,
        contextlib.AsyncExitStack() as stack,
    ):
        server = await stack.enter_async_context(
            server_of(tmp_path, [deaf.base], service={"runs_per_user": 200})
        )
        await deaf.streams.get()
        for _ in range(120 if greets else 1):
            await server.portal.upload({"run.sh": "true", "filler": b"x" * 60_000})
        large = {f"large{n}": b"x" * 1_000_000 for n in range(9)}
        await server.portal.upload({"run.sh": "true", **large})
        async with asyncio.timeout(5):
            await stack.aclose()
