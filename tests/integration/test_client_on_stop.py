"""ON_STOP: what becomes of payloads when orch-client, as a process of its own, is told to stop."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator_client import processes
from support.agent import claim, form, kill_what_runs, supervisor_ended
from support.follower import Follower, following
from support.gate import Gate
from support.portal import Answer, Portal
from support.processes import Program, programs


class Own:
    """A client that was started, and the stream of its server."""

    def __init__(self, program: Program, session: aiohttp.ClientSession, stream: Follower) -> None:
        self.program = program
        self.session = session
        self.stream = stream

    async def try_submit(self, script: str, job: int, attempt: int = 1) -> Answer:
        """Hand a job over, whatever the answer."""
        portal = Portal(self.program.url, self.session)
        return await portal.post("/submit", data=form(script), headers=claim(job, attempt))

    async def submit(self, script: str, job: int) -> int:
        """Hand a job over that is taken; gives its payload's id."""
        answer = await self.try_submit(script, job)
        assert answer.status == 200, answer
        id: int = answer.json["id"]
        return id

    def told_to_stop(self, number: int = signal.SIGTERM) -> asyncio.Task[int]:
        """Send the signal; its exit code comes later."""
        return asyncio.create_task(self.program.stop(number))

    async def leaving(self) -> None:
        """Wait until it says that it stops."""
        await self.stream.until(
            lambda frame: frame.kind == "heartbeat" and frame.header["state"] == "leaving"
        )


@contextlib.asynccontextmanager
async def started(
    folder: Path, session: aiohttp.ClientSession, **environment: str
) -> AsyncIterator[Own]:
    """A client with one slot; what it leaves running is ended."""
    settings = {"SLOTS": "1", "KILL_GRACE": "0", **environment}
    program = Program("orch-client", folder, settings)
    folder.mkdir()
    try:
        await program.start()
        async with following(session, program.url) as stream:
            await stream.kind("listed")
            yield Own(program, session, stream)
    finally:
        await program.close()
        data_path = folder / "client-data"
        while not supervisor_ended(data_path):
            for run in data_path.glob("payloads/*/run"):
                kill_what_runs(run)
            await asyncio.sleep(0.005)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


def check_handed_back(payload: dict[str, Any]) -> None:
    """It was given up, and nothing was packed of it."""
    assert (payload["status"], payload["fault"]) == ("Failed", "infrastructure")
    assert (payload["lost"], payload["handed_back"]) == (True, True)
    assert (payload["result"], payload["reason"]) == (None, "the client stopped")


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return processes.read_stat(pid)[0] not in ("", "Z", "X")


async def test_hand_back_gives_up_what_runs_and_what_waits(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """Both are told as handed back before the stream ends; the process ends well, without what it
    ran."""
    async with started(tmp_path / "c", session, ON_STOP="hand-back") as client:
        running = await client.submit(f"echo $$ > {tmp_path}/pid; {gate.wait}", 1)
        await gate.reached()
        waiting = await client.submit("true", 2)

        stop = client.told_to_stop()
        for job, id in ((1, running), (2, waiting)):
            check_handed_back(await client.stream.ended(id))
            await client.stream.acknowledge(job)
        code = await stop

        assert code == 0
        assert not alive(int((tmp_path / "pid").read_text()))
        assert not [line for line in client.program.log if "ERROR" in line]
    gate.close()


async def test_a_run_sh_that_ignores_sigterm_is_killed(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """However long KILL_GRACE is: the stop takes no longer for it."""
    async with started(tmp_path / "c", session, ON_STOP="hand-back", KILL_GRACE="1h") as client:
        running = await client.submit(f"trap '' TERM; {gate.wait}; {gate.wait}", 1)
        await gate.reached()

        stop = client.told_to_stop()
        end = await client.stream.ended(running)
        await client.stream.acknowledge(1)

        check_handed_back(end)
        assert await stop == 0
    gate.close()


async def test_what_no_server_heard_is_told_at_the_next_start(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """It was written down; nothing of it is run again."""
    async with started(tmp_path / "c", session, ON_STOP="hand-back") as client:
        running = await client.submit(f"echo x >> {tmp_path}/starts; {gate.wait}", 1)
        await gate.reached()
        waiting = await client.submit(f"echo x >> {tmp_path}/starts", 2)
        await client.stream.close()

        assert await client.program.stop() == 0
        await client.program.start()

        async with following(session, client.program.url) as stream:
            for id in (running, waiting):
                check_handed_back(await stream.ended(id))
        assert (tmp_path / "starts").read_text() == "x\n"
    gate.close()


async def test_one_that_is_killed_as_it_hands_back(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """The wish was durable before the first signal: it is handed back at the next start."""
    async with started(tmp_path / "c", session, ON_STOP="hand-back", KILL_GRACE="1h") as client:
        running = await client.submit(f"trap '{gate.wait}; exit 0' TERM; {gate.wait}", 1)
        await gate.reached()
        stop = client.told_to_stop()
        await gate.reached()

        await client.program.close()
        await stop
        await client.program.start()

        async with following(session, client.program.url) as stream:
            gate.open()
            check_handed_back(await stream.ended(running))
    gate.close()


async def test_a_supervisor_that_hangs_holds_up_no_stop(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """It does what it was told once it goes on; the next start hears of it."""
    async with started(tmp_path / "c", session, ON_STOP="hand-back") as client:
        running = await client.submit(f"echo $PPID > {tmp_path}/supervisor; {gate.wait}", 1)
        await gate.reached()
        supervisor = int((tmp_path / "supervisor").read_text())
        os.kill(supervisor, signal.SIGSTOP)
        try:
            code = await client.program.stop()
        finally:
            os.kill(supervisor, signal.SIGCONT)
        await client.program.start()

        assert code == 0
        async with following(session, client.program.url) as stream:
            check_handed_back(await stream.ended(running))
    gate.close()


async def test_finish_lets_what_runs_end(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """What waits is handed back at once, nothing more is taken, and the result can be fetched."""
    async with started(tmp_path / "c", session, ON_STOP="finish", STOP_GRACE="1h") as client:
        running = await client.submit(f"{gate.wait}; echo done > out.txt", 1)
        await gate.reached()
        waiting = await client.submit("true", 2)
        stop = client.told_to_stop()

        check_handed_back(await client.stream.ended(waiting))
        await client.stream.acknowledge(2)
        await client.leaving()
        refused = await client.try_submit("true", 3)
        gate.open()
        end = await client.stream.ended(running)
        portal = Portal(client.program.url, session)
        result = (await portal.get(f"/retrieve/{running}")).zip
        assert not stop.done()
        await client.stream.acknowledge(1)

        assert await stop == 0
        assert refused.status == 503
        assert (end["status"], end["handed_back"]) == ("Completed", False)
        assert result.read("out.txt") == b"done\n"
    gate.close()


async def test_finish_waits_for_stop_grace_at_most(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """What is left then is handed back."""
    async with started(tmp_path / "c", session, ON_STOP="finish", STOP_GRACE="0.1") as client:
        running = await client.submit(gate.wait, 1)
        await gate.reached()

        stop = client.told_to_stop()
        end = await client.stream.ended(running)
        await client.stream.acknowledge(1)

        check_handed_back(end)
        assert await stop == 0
    gate.close()


async def test_a_second_signal_ends_the_waiting(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """Somebody is in a hurry: what runs is handed back at once."""
    async with started(tmp_path / "c", session, ON_STOP="finish", STOP_GRACE="1h") as client:
        running = await client.submit(gate.wait, 1)
        await gate.reached()
        first = client.told_to_stop()
        await client.program.logged("waiting for what runs: 1")

        second = client.told_to_stop(signal.SIGINT)
        end = await client.stream.ended(running)
        await client.stream.acknowledge(1)

        check_handed_back(end)
        assert (await first, await second) == (0, 0)
    gate.close()


@pytest.mark.parametrize("on_stop", ["hand-back", "finish"])
async def test_an_idle_client_stops_at_once(
    tmp_path: Path, session: aiohttp.ClientSession, on_stop: str
) -> None:
    """There is nothing to wait for, however long it might."""
    async with started(tmp_path / "c", session, ON_STOP=on_stop, STOP_GRACE="1h") as client:
        assert await client.told_to_stop() == 0
        await client.stream.end()


async def test_leave_lets_what_runs_run_on(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """And keeps what waits; the next start takes both up again."""
    async with started(tmp_path / "c", session) as client:
        running = await client.submit(f"echo x >> {tmp_path}/starts; {gate.wait}", 1)
        await gate.reached()
        waiting = await client.submit("true", 2)

        assert await client.told_to_stop() == 0
        await client.program.start()

        async with following(session, client.program.url) as stream:
            await stream.state(running, "Running")
            await stream.state(waiting, "Prepared")
            gate.open()
            assert (await stream.ended(running))["status"] == "Completed"
            assert (await stream.ended(waiting))["status"] == "Completed"
        assert (tmp_path / "starts").read_text() == "x\n"
    gate.close()


async def test_a_job_that_was_handed_back_runs_again(
    tmp_path: Path, session: aiohttp.ClientSession, gate: Gate
) -> None:
    """It is Queued before the client is gone, without an attempt lost, and ends at the next."""
    async with programs(
        tmp_path,
        server={"SERVICE_EXAMPLE_MAX_ATTEMPTS": "1"},
        client={"ON_STOP": "hand-back", "KILL_GRACE": "0"},
    ) as (server, (client,)):
        portal = Portal(server.url, session)
        id = await portal.upload(f"echo x >> {tmp_path}/starts; {gate.wait}; echo done > out.txt")
        await gate.reached()

        assert await client.stop() == 0
        queued = await portal.job(id)
        await client.start()
        await gate.reached()
        gate.open()
        ended = await portal.ended(id)

        assert (queued["status"], ended["status"]) == ("Queued", "Completed")
        assert "the client stopped" in queued["history"][-1]["reason"]
        assert (await portal.result(id)).read("out.txt") == b"done\n"
        assert (tmp_path / "starts").read_text() == "x\nx\n"
    gate.close()
