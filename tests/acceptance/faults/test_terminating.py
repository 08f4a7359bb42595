"""A job is ended on request: in every state, and with everything that can go wrong meanwhile."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from acceptance.faults.messages import of_status
from acceptance.faults.world import LARGE, PATIENCE, SCALE, World, eventually, kill_container, world
from support.faults import Cut, Delay, Fault, Hold, Instead, Rule

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

NO_ROOM = (
    b"HTTP/1.1 507 Insufficient Storage\r\nOrchestrator-Protocol: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    b'{"message": ""}'
)


def never(world: World, *, label: str, large: bool = False) -> dict[str, Any]:
    """A job that ends only if it is ended."""
    return {
        "label": label,
        "script": world.gate().script,
        "ends": ("Killed",),
        "size": LARGE if large else 0,
    }


async def test_a_queued_job_is_killed_at_once(tmp_path: Path) -> None:
    """No client is needed for that, and none ever gets it."""
    async with world(tmp_path, clients=1) as there:
        await there.proxies[0].down()
        await there.clients_are_there(0)
        id = await there.upload(**never(there, label="queued"))
        assert (await there.terminate(id)).status == 200
        assert (await there.terminate(id)).status == 409
        await there.proxies[0].up()
        await there.clients_are_there()
        await there.upload()
        await there.settled()
        assert there.checker.attempts(id) == []


async def test_a_job_on_its_way_is_killed_once_its_client_has_it(tmp_path: Path) -> None:
    """While its submit has no outcome there is nobody to ask: the wish is kept until then."""
    async with world(tmp_path, clients=1) as there:
        for kind in ("submit", "POST /submit"):
            way = Hold()
            there.harm(rule := Rule(kind, way))
            id = await there.upload(**never(there, label=kind, large=kind != "submit"))
            await rule.hit.wait()
            terminating = asyncio.create_task(there.terminate(id))
            await wish(there, id)
            way.go.set()
            assert (await terminating).status == 200
        await there.settled()


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("submit", Cut(0)), ("POST /submit answer", Instead(NO_ROOM))],
    ids=["cut", "507"],
)
async def test_a_job_that_is_refused_is_not_sent_again_against_a_wish(
    tmp_path: Path, kind: str, fault: Fault
) -> None:
    """Where it would become Queued, or be sent again, it becomes Killed."""
    async with world(tmp_path, clients=1) as there:
        way = Hold(then=fault)
        there.harm(rule := Rule(kind, way))
        own = never(there, label="refused", large=kind != "submit")
        id = await there.upload(**own)
        await rule.hit.wait()
        terminating = asyncio.create_task(there.terminate(id))
        await wish(there, id)
        way.go.set()
        assert (await terminating).status == 200
        await there.settled()
        assert (await there.portal.job(id))["attempt"] == 1


async def test_a_submitted_job_is_killed_before_it_starts_or_right_after(tmp_path: Path) -> None:
    """The server has not heard yet that it runs."""
    async with world(tmp_path, clients=1) as there:
        hold = Hold()
        there.harm(rule := Rule("state", hold, where=of_status("Running")))
        id = await there.upload(**never(there, label="submitted"))
        await rule.hit.wait()
        await there.portal.reached(id, "Submitted")
        terminating = asyncio.create_task(there.terminate(id))
        await wish(there, id)
        hold.go.set()
        assert (await terminating).status == 200
        await there.settled()


async def test_a_job_that_ends_just_then_has_one_end(tmp_path: Path) -> None:
    """Killed or Completed, and the answer says the same as the record."""
    async with world(tmp_path) as there:
        for _ in range(3 * SCALE):
            gate = there.gate()
            both = ("Completed", "Killed")
            ids = [
                await there.upload(label="either", script=gate.script, ends=both) for _ in range(4)
            ]
            for id in ids:
                await there.portal.reached(id, "Running")
            gate.open()
            answers = await asyncio.gather(*(there.terminate(id) for id in ids))
            for id, answer in zip(ids, answers, strict=True):
                record = await there.portal.ended(id)
                assert answer.status in (200, 409), answer
                assert (answer.status == 200) == (record["status"] == "Killed"), (answer, record)
        await there.settled()


async def test_a_job_at_a_client_that_is_away_is_killed_when_it_is_back(tmp_path: Path) -> None:
    """Meanwhile the answer is 202, and the record shows the wish."""
    async with world(tmp_path, clients=1) as there:
        id = await there.upload(**never(there, label="away"))
        await there.begun(id)
        await there.proxies[0].down()
        await there.clients_are_there(0)
        answer = await there.terminate(id)
        assert answer.status == 202
        assert (await there.portal.job(id))["kill_requested"]
        # The end of the list comes late: it is known to be there, and not yet who is.
        there.harm(Rule("listed", Delay(0.3)))
        await there.proxies[0].up()
        await there.settled(within=20)


async def test_a_job_of_a_dead_container_is_not_run_again_against_a_wish(tmp_path: Path) -> None:
    """Its payload is lost: the end is the one that was asked for."""
    async with world(tmp_path, clients=1) as there:
        id = await there.upload(**never(there, label="dead"))
        await there.begun(id)
        await kill_container(there.clients[0])
        await there.clients_are_there(0)
        terminating = asyncio.create_task(there.terminate(id))
        await wish(there, id)
        await there.clients[0].start()
        await terminating
        await there.settled()
        assert there.checker.attempts(id) == [1]


@pytest.mark.parametrize(
    ("stops", "exit_code"),
    [(True, 0), pytest.param(True, 3, marks=pytest.mark.faults), (False, 0)],
    ids=["ends", "fails", "stays"],
)
async def test_a_kill_that_its_client_did_not_live_to_see(
    tmp_path: Path, stops: bool, exit_code: int
) -> None:
    """The client dies between the signal and the end of run.sh: it is Killed, whether run.sh
    heeds the signal or not, and whatever it exits with."""
    async with world(tmp_path, clients=1, client={"KILL_GRACE": "2"}) as there:
        heard = tmp_path / "heard"
        gate = there.gate()
        then = f"{gate.script}; exit {exit_code}" if stops else ""
        trap = f"trap 'touch {heard}; {then}' TERM"
        # A builtin that waits lets a trap through only when it is done: wait for a child.
        wait = "while :; do sleep 60 & wait $!; done"
        id = await there.upload(label="killed", script=f"{trap}\n{wait}", ends=("Killed",))
        await there.begun(id)
        terminating = asyncio.create_task(there.terminate(id))
        await eventually(heard.exists)
        await there.clients[0].stop(signal.SIGKILL)
        if stops:
            gate.open()
        await eventually(lambda: not there.strays())
        await there.clients[0].start()
        assert (await terminating).status in (200, 202)
        await there.settled()


async def test_a_wish_outlives_the_server(tmp_path: Path) -> None:
    """It was committed before anybody was told."""
    async with world(tmp_path, clients=1) as there:
        ids = [await there.upload(**never(there, label="wished")) for _ in range(2)]
        for id in ids:
            await there.begun(id)
        there.harm(Rule("POST /kill", Cut(0), times=2))
        wishes = [asyncio.create_task(once(there, id)) for id in ids]
        for id in ids:
            await wish(there, id)
        await there.kill_server()
        await asyncio.gather(*wishes)
        await there.server.start()
        await there.settled()


async def wish(world: World, id: int) -> None:
    """Wait until the wish that a job ends is kept, or it has ended."""
    while not (await world.portal.job(id))["kill_requested"]:
        await asyncio.sleep(0.01)


async def once(world: World, id: int) -> None:
    """Ask for the end of a job once, whether the answer arrives or not."""
    try:
        async with world.portal.session.post(f"{world.server.url}/terminate/{id}"):
            pass
    except aiohttp.ClientError:
        pass


async def test_a_killed_payload_is_never_started(tmp_path: Path) -> None:
    """It waits for a slot at its client, and is still being packed when the slot is free."""
    async with world(tmp_path, clients=1, client={"SLOTS": "1"}) as there:
        client, gate = there.clients[0], there.gate()
        session = there.portal.session

        async def submit(files: dict[str, bytes]) -> int:
            """As a server does that does not say who it is."""
            form = aiohttp.FormData()
            for name, content in files.items():
                form.add_field("file", content, filename=name)
            async with session.post(f"{client.url}/submit", data=form) as response:
                id: int = (await response.json())["id"]
                return id

        await submit({"run.sh": f"{gate.script}\n".encode()})
        started = tmp_path / "started"
        files = {f"f{n}": there.random.randbytes(900_000) for n in range(60)}
        second = await submit({"run.sh": f"touch {started}\n".encode(), **files})
        killing = asyncio.create_task(session.post(f"{client.url}/kill/{second}").__aenter__())
        packing = client.folder / "client-data" / "payloads" / str(second) / "result.zip.new"
        await eventually(packing.exists)
        gate.open()
        (await killing).release()
        third = await submit({"run.sh": b"true\n"})
        while True:
            async with session.get(f"{client.url}/retrieve/{third}") as response:
                if response.status == 200:
                    break
            await asyncio.sleep(0.01)
        assert not started.exists()
