"""What a server has acknowledged, or never will: its files go, and it is remembered."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client import cleaner
from orchestrator_client.keys import CLEANER, PAYLOADS
from support.agent import Agent, Clocks, agent, claim
from support.gate import Gate
from support.limits import files_no_larger_than, run_as_owner

DAY = 86400.0


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with two slots."""
    async with agent(tmp_path / "client", session) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


@pytest.fixture
async def clocks(client: Agent) -> Clocks:
    """The clocks by which the client tells ages."""
    own = Clocks()
    client.clock = own.make()
    await client.restart()
    return own


async def gone(client: Agent) -> None:
    """Wait until no folder of any payload is left."""
    while client.left():
        await client.portal.get("/live")


@pytest.mark.parametrize("end", ["exit 0", "exit 1"])
async def test_an_acknowledged_payload_is_dropped(client: Agent, end: str) -> None:
    """Its folders are gone; it is Cleaned, and listed no more."""
    payload = await client.run(f"echo x > out.txt; {end}", job=1)

    await client.stream.acknowledge(1)
    cleaned = (await client.stream.state(payload["id"], "Cleaned")).payload
    await gone(client)

    assert cleaned["job"] == 1
    assert (await client.retrieve(payload["id"])).status == 204
    async with client.follow() as second:
        await second.kind("listed")
    assert [frame for frame in second.frames if frame.kind == "state"] == []


async def test_what_a_full_disk_does_not_remember_is_not_removed(
    client: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No half of a line is left, and once there is room everything is."""
    monkeypatch.setattr(cleaner, "QUIET_PATIENCE", 0.05)
    log = client.data_path / "cleaned.jsonl"
    for job in (1, 2):
        await client.run("true", job=job)
    await client.stream.acknowledge(1)
    while not log.exists() or not log.stat().st_size:
        await client.portal.get("/live")
    first = log.read_bytes()

    with files_no_larger_than(len(first) + 50):
        await client.stream.acknowledge(2)
        while "cannot be removed yet" not in caplog.text:
            await client.portal.get("/live")
        assert log.read_bytes() == first
        assert client.left()
    await gone(client)

    assert [json.loads(line)["job"] for line in log.read_bytes().splitlines()] == [1, 2]


async def test_only_what_is_named_is_dropped(client: Agent) -> None:
    """Other jobs, other attempts and other servers' payloads stay."""
    kept = [
        await client.run("true", job=1, attempt=2),
        await client.run("true", job=2),
        await client.submit("true", job=1, attempt=1, server="another"),
    ]
    dropped = await client.run("true", job=3)

    await client.stream.acknowledge(1, 1)
    await client.stream.acknowledge(4, 1)
    await client.stream.acknowledge(3, 1)
    await client.stream.state(dropped["id"], "Cleaned")

    for payload in kept:
        assert client.control(payload["id"]).is_dir()


@pytest.mark.parametrize("restart", [False, True])
async def test_a_late_submit_of_a_dropped_attempt_runs_nothing(
    client: Agent, tmp_path: Path, restart: bool
) -> None:
    """The Cleaned payload comes back, over HTTP and on the stream, also after a restart."""
    script = f"echo started >> {tmp_path}/starts"
    payload = await client.run(script, job=1)
    await client.stream.acknowledge(1)
    await client.stream.state(payload["id"], "Cleaned")
    await gone(client)
    if restart:
        await client.restart()
    client.stream.frames.clear()

    answer = await client.try_submit(script, claim(1))
    await client.stream.submit(1, script)
    told = await client.stream.of_attempt(1, 1)

    assert answer.status == 200
    assert (answer.json["id"], answer.json["status"]) == (payload["id"], "Cleaned")
    assert (told["id"], told["status"]) == (payload["id"], "Cleaned")
    await client.run("true", job=2)
    assert (tmp_path / "starts").read_text() == "started\n"


async def test_it_is_remembered_before_the_files_go(client: Agent) -> None:
    """A `kill -9` in between leaves files that are dropped again, never a job that runs again."""
    payload = await client.run("true", job=1)
    saved = client.control(payload["id"]) / "end.json"
    end = saved.read_bytes()
    await client.stream.acknowledge(1)
    await client.stream.state(payload["id"], "Cleaned")
    await gone(client)
    await client.stop()
    # As if it had been killed right after it had noted what it was about to remove.
    client.control(payload["id"]).mkdir()
    (client.control(payload["id"]) / "end.json").write_bytes(end)
    client.work(payload["id"]).mkdir()

    await client.start()

    assert client.left() == []
    again = await client.try_submit("true", claim(1))
    assert (again.json["id"], again.json["status"]) == (payload["id"], "Cleaned")


async def test_a_line_that_was_cut_short_harms_no_other(client: Agent) -> None:
    """What was dropped before and after a crash is remembered."""
    notes = client.data_path / "cleaned.jsonl"
    ids = []
    for job in (1, 2, 3):
        ids.append((await client.run("true", job=job))["id"])
        await client.stream.acknowledge(job)
        await client.stream.state(ids[-1], "Cleaned")
        await gone(client)
        await client.stop()
        if job == 1:
            notes.write_bytes(notes.read_bytes().rstrip(b"\n"))
        if job == 2:
            notes.write_bytes(notes.read_bytes() + b'{"id": 17, "serv')
        await client.start()

    again = [(await client.try_submit("true", claim(job))).json for job in (1, 2, 3)]

    assert [payload["id"] for payload in again] == ids
    assert {payload["status"] for payload in again} == {"Cleaned"}


async def test_what_runs_is_ended_and_dropped(client: Agent, gate: Gate) -> None:
    """An acknowledgement of what has not ended says that nobody wants it any more."""
    payload = await client.submit(gate.wait, job=1)
    await gate.reached()

    await client.stream.acknowledge(1)

    await client.stream.state(payload["id"], "Cleaned")
    await gone(client)
    assert (await client.try_submit("true", claim(1))).json["status"] == "Cleaned"
    gate.close()


async def test_what_waits_is_dropped_and_never_starts(
    client: Agent, gate: Gate, tmp_path: Path
) -> None:
    """Likewise one that is Prepared."""
    for _ in range(2):
        await client.submit(gate.wait)
        await gate.reached()
    payload = await client.submit(f"touch {tmp_path}/started", job=100)

    await client.stream.acknowledge(100)
    await client.stream.state(payload["id"], "Cleaned")
    gate.open(2)
    await client.run("true")

    assert not (tmp_path / "started").exists()
    gate.close()


async def test_many_ends_at_once_are_dropped(client: Agent) -> None:
    """Acknowledged the moment they are told, while what they left is still being removed."""
    await client.restart(slots=20)
    script = "mkdir a b c; touch {a,b,c}/{1..50}"
    payloads = [await client.submit(script, job=job) for job in range(1, 25)]

    async def drop(job: int, id: int) -> None:
        await client.stream.ended(id)
        await client.stream.acknowledge(job)
        await client.stream.acknowledge(job)
        await client.stream.state(id, "Cleaned")

    await asyncio.gather(*(drop(n, p["id"]) for n, p in enumerate(payloads, 1)))

    await gone(client)


async def test_what_nobody_can_acknowledge_is_kept_for_max_age(
    client: Agent, clocks: Clocks, gate: Gate
) -> None:
    """Counted from its end: for MAX_AGE without a server, for UNCLAIMED_MAX_AGE with one."""
    await client.restart(max_age=2 * DAY, unclaimed_max_age=30 * DAY)
    running = (await client.try_submit(gate.wait, {})).json["id"]
    await gate.reached()
    anonymous = (await client.try_submit("true", {})).json["id"]
    claimed = (await client.run("true"))["id"]
    while (await client.retrieve(anonymous)).status == 202:
        pass

    async def after(days: float) -> list[int]:
        clocks.go_to(days * DAY)
        await client.app[CLEANER].run_once()
        statuses = {id: client.app[PAYLOADS].get(id).status for id in (running, anonymous, claimed)}
        return [id for id, status in statuses.items() if status != "Cleaned"]

    assert await after(1.99) == [running, anonymous, claimed]
    assert await after(2.01) == [running, claimed]
    assert await after(29.99) == [running, claimed]
    assert await after(30.01) == [running]
    gate.close()


@pytest.mark.parametrize("restart", [False, True])
async def test_it_is_remembered_for_thirty_days(
    client: Agent, clocks: Clocks, restart: bool
) -> None:
    """From the day on which it was dropped; then a process that never ends forgets it too."""

    async def look(days: float) -> str:
        clocks.go_to(days * DAY)
        if restart:
            await client.restart()
        else:
            await client.app[CLEANER].run_once()
        status: str = (await client.try_submit({"in.txt": "x"}, claim(1))).json["status"]
        return status

    # It had ended long before it was dropped.
    payload = await client.run("true", job=1)
    clocks.go_to(20 * DAY)
    await client.stream.acknowledge(1)
    await client.stream.state(payload["id"], "Cleaned")
    await gone(client)

    assert await look(49.99) == "Cleaned"
    assert await look(50.01) == "Prepared"


async def test_a_disk_that_takes_no_line_still_gets_its_room_back(client: Agent) -> None:
    """The large files go even if the note of it cannot be written; the next ones go whole."""
    payload = await client.run("head -c 100000 /dev/urandom > out", job=1)
    notes = client.data_path / "cleaned.jsonl"
    notes.unlink(missing_ok=True)
    notes.mkdir()

    await client.stream.acknowledge(1)
    await client.stream.state(payload["id"], "Cleaned")
    while (client.control(payload["id"]) / "result.zip").exists():
        await client.portal.get("/live")
    await client.stop()
    notes.rmdir()
    await client.start()
    client.stream.frames.clear()
    await client.stream.acknowledge(1)
    await client.stream.state(payload["id"], "Cleaned")

    await gone(client)
    assert json.loads(notes.read_text())["id"] == payload["id"]


def test_what_a_job_locked_goes_too(tmp_path: Path) -> None:
    """Folders that nobody may write to, also the one that holds the others: the client is their
    owner."""
    code = """
import os, sys
from pathlib import Path
from orchestrator_client.workdir import Claim, Workdir
for name in ("payloads", "work", "tmp"):
    Path(sys.argv[1], name).mkdir()
workdir = Workdir(Path(sys.argv[1]), 7)
workdir.prepare(Claim("", None, None, ""), lambda job: os.makedirs(job + "/a/b"))
job = Path(workdir.job)
for locked in (job / "a" / "b", job / "a", job, job.parent):
    locked.chmod(0)
workdir.remove()
"""
    run_as_owner(code, tmp_path)

    assert list(tmp_path.glob("*/*")) == []
