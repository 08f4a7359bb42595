"""SIGTERM and SIGINT: both programs stop within 5 seconds, and nothing is lost by it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.gate import Gate
from support.portal import Portal
from support.processes import Program, programs

#: A program stops within this time (seconds), whatever goes on.
STOPS_WITHIN = 5.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where jobs wait."""
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Program, Program]]:
    """A server and a client."""
    async with programs(tmp_path) as (server, (client,)):
        yield server, client


async def _stop(program: Program, number: int = signal.SIGTERM) -> None:
    async with asyncio.timeout(STOPS_WITHIN):
        assert await program.stop(number) == 0
    assert "Traceback" not in "\n".join(program.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_jobs_run_on_while_both_programs_are_stopped(
    both: tuple[Program, Program],
    gate: Gate,
    session: aiohttp.ClientSession,
    tmp_path: Path,
    number: int,
) -> None:
    """The result is there after the next start, and run.sh was started once."""
    server, client = both
    portal = Portal(server.url, session)
    starts = tmp_path / "starts"
    ids = [
        await portal.upload(f"echo $ORCH_JOB_ID >> {starts}; {gate.wait}; echo $ORCH_JOB_ID > out")
        for _ in range(3)
    ]
    assert {await gate.reached() for _ in range(2)} == set(ids[:2])
    for id in ids[:2]:
        await portal.reached(id, "Running")

    await _stop(server, number)
    await _stop(client, number)
    gate.open(3)
    await client.start()
    await server.start()

    for id in ids:
        record = await portal.ended(id)
        assert (record["status"], record["attempt"]) == ("Completed", 1)
        assert (await portal.result(id)).read("out") == f"{id}\n".encode()
    assert sorted(starts.read_text().split()) == sorted(map(str, ids))


async def test_callers_that_wait_get_the_state_as_it_is(
    both: tuple[Program, Program], gate: Gate, session: aiohttp.ClientSession
) -> None:
    """When the server stops nobody is left without an answer."""
    server, _ = both
    portal = Portal(server.url, session)
    id = await portal.upload(gate.wait)
    await portal.reached(id, "Running")
    last = (await portal.get("/events")).json["next"]
    waiting = [
        _ask(server, path)
        for path in (
            f"/jobs/{id}?wait=60",
            f"/jobs/{id}?wait=60&seen=3",
            f"/events?after={last}&wait=60",
        )
    ]
    # The server takes connections in their order: it has read those before it answers this one.
    assert await _read(_ask(server, "/live")) == {"status": "live"}

    await _stop(server)

    record, _, events = [await _read(asking) for asking in waiting]
    assert record["status"] == "Running"
    assert events["events"] == []
    gate.open()


def _ask(program: Program, path: str) -> socket.socket:
    """Send a request over a connection of its own, and wait for nothing."""
    asking = socket.create_connection(("127.0.0.1", program.port))
    asking.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return asking


async def _read(asking: socket.socket) -> Any:
    """The JSON of an answer, which is a good one."""
    with asking, asking.makefile("rb") as file:
        head, _, body = (await asyncio.to_thread(file.read)).partition(b"\r\n\r\n")
    assert b" 200 OK" in head.splitlines()[0]
    return json.loads(body)


@pytest.mark.parametrize("transfer", ["download", "upload", "terminate"])
async def test_a_caller_that_hangs_does_not_hold_up_the_end(
    both: tuple[Program, Program], gate: Gate, session: aiohttp.ClientSession, transfer: str
) -> None:
    """A transfer that still goes on after 4 seconds is cut."""
    server, _ = both
    portal = Portal(server.url, session)
    if transfer == "terminate":
        id = await portal.upload(f"trap '' TERM; {gate.wait}; {gate.wait}")
        await gate.reached()
        await portal.reached(id, "Running")
        request = f"POST /terminate/{id} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    elif transfer == "download":
        id = await portal.upload("head -c 50000000 /dev/urandom > noise")
        await portal.ended(id)
        request = f"GET /download/{id} HTTP/1.1\r\nHost: x\r\n\r\n"
    else:
        request = (
            "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
    with socket.create_connection(("127.0.0.1", server.port)) as hanging:
        hanging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hanging.sendall(request.encode())
        await portal.get("/live")
        await _stop(server)


async def test_a_client_that_hangs_does_not_hold_up_the_end(
    both: tuple[Program, Program], gate: Gate, session: aiohttp.ClientSession
) -> None:
    """Stopped with SIGSTOP: its connections stand, and it says nothing."""
    server, client = both
    portal = Portal(server.url, session)
    id = await portal.upload(gate.wait)
    await gate.reached()
    await portal.reached(id, "Running")
    os.kill(client.pid, signal.SIGSTOP)
    for _ in range(2):
        await portal.upload("true")

    await _stop(server)

    os.kill(client.pid, signal.SIGCONT)
    gate.open()
    await server.start()
    for job in range(id, id + 3):
        record = await portal.ended(job)
        assert (record["status"], record["attempt"]) == ("Completed", 1)


async def test_a_locked_database_does_not_hold_up_the_end(
    both: tuple[Program, Program], session: aiohttp.ClientSession
) -> None:
    """Who waits for it is told to try again, and nothing of the upload is left."""
    server, _ = both
    portal = Portal(server.url, session)
    assert (await portal.ended(await portal.upload("true")))["status"] == "Completed"
    folders = server.folder / "server-data" / "jobs"
    with contextlib.closing(
        sqlite3.connect(server.folder / "orch-server.sqlite", isolation_level=None)
    ) as database:
        database.execute("BEGIN IMMEDIATE")
        upload = asyncio.create_task(portal.try_upload({"run.sh": "true", "in": b"x" * 100_000}))
        while not list(folders.iterdir()):
            await portal.get("/live")

        await _stop(server)

        assert (await upload).status == 503
    assert list(folders.iterdir()) == []
    await server.start()
    listed = (await portal.get("/jobs")).json["jobs"]
    assert [job["status"] for job in listed] == ["Completed"]


@pytest.mark.parametrize("which", [0, 1], ids=["server", "client"])
async def test_an_idle_program_stops(both: tuple[Program, Program], which: int) -> None:
    """And can be told twice."""
    program = both[which]
    os.kill(program.pid, signal.SIGTERM)
    await _stop(program)
