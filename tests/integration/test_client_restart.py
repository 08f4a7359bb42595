"""A client that stops and starts again: what ran, runs on, and everything is taken up."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_client.keys import RUNNER
from support.agent import Agent, agent, claim
from support.gate import Gate


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with two slots."""
    async with agent(tmp_path / "client", session) as own:
        yield own


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a run.sh waits."""
    return Gate(tmp_path)


@pytest.mark.parametrize(
    ("end", "status", "exit_code"),
    [
        ("exit 0", "Completed", 0),
        ("exit 7", "Failed", 7),
        ("kill -SEGV $$", "Failed", 139),
    ],
)
async def test_what_still_runs_is_taken_up(
    client: Agent, gate: Gate, end: str, status: str, exit_code: int
) -> None:
    """The same run.sh, with its own end, once it comes."""
    payload = await client.submit(f"echo begun >> begun; {gate.wait}; {end}")
    await gate.reached()

    await client.restart()
    seen = (await client.stream.state(payload["id"], "Running")).payload
    gate.open()
    ended = await client.stream.ended(payload["id"])

    assert seen["pid"] > 0
    assert (ended["status"], ended["exit_code"]) == (status, exit_code)
    assert ended["wall_s"] > 0
    assert (await client.result(payload["id"])).read("begun") == b"begun\n"
    gate.close()


@pytest.mark.parametrize(
    ("end", "status", "exit_code"),
    [("exit 0", "Completed", 0), ("echo x >&2; exit 7", "Failed", 7)],
)
async def test_what_ended_meanwhile_is_taken_up(
    client: Agent, gate: Gate, end: str, status: str, exit_code: int
) -> None:
    """Its supervisor has kept the exit status, and is gone by then."""
    payload = await client.submit(f"echo out > out.txt; {gate.wait}; {end}")
    await gate.reached()

    await client.stop()
    gate.open()
    await client.supervisor_gone()
    await client.start()
    ended = await client.stream.ended(payload["id"])

    assert (ended["status"], ended["exit_code"]) == (status, exit_code)
    assert ended["cpu_s"] > 0
    assert ended["max_rss"] > 0
    assert ended["stderr_tail"] == ("" if status == "Completed" else "x\n")
    assert (await client.result(payload["id"])).read("out.txt") == b"out\n"
    gate.close()


async def test_one_that_runs_and_one_that_ended_are_both_taken_up(
    client: Agent, gate: Gate, tmp_path: Path
) -> None:
    """Each by its own file, under the same supervisor."""
    other = Gate(tmp_path, "other")
    ends = await client.submit(f"{other.wait}; exit 4")
    runs = await client.submit(gate.wait)
    await other.reached()
    await gate.reached()

    await client.stop()
    other.open()
    run = client.control(ends["id"]) / "run"
    while b'"exit_code":4' not in run.read_bytes():
        pass
    await client.start()

    assert (await client.stream.ended(ends["id"]))["exit_code"] == 4
    assert (await client.retrieve(runs["id"])).json["status"] == "Running"
    assert (await client.portal.get("/health")).json["slots_in_use"] == 1
    gate.open()
    assert (await client.stream.ended(runs["id"]))["status"] == "Completed"
    gate.close()
    other.close()


async def test_what_was_prepared_starts(client: Agent, gate: Gate) -> None:
    """Once there is a free slot, after what had already begun."""
    await client.restart(slots=1)
    first = await client.submit(gate.wait, job=1)
    await gate.reached()
    second = await client.submit(gate.wait, job=2)

    await client.restart()
    gate.open()

    assert await gate.reached() == 2
    gate.open()
    assert (await client.stream.ended(first["id"]))["status"] == "Completed"
    assert (await client.stream.ended(second["id"]))["status"] == "Completed"
    gate.close()


async def test_what_had_ended_is_as_it_was(client: Agent) -> None:
    """Same state, same bytes, same answers; nothing is run again."""
    ids = [
        (await client.run("echo x > out.txt", job=1))["id"],
        (await client.run("echo y >&2; exit 3", job=2))["id"],
        (await client.run({"in.txt": "x"}, job=3))["id"],
    ]

    async def seen() -> list[tuple[object, ...]]:
        return [
            (answer.status, answer.body, answer.headers.get("ETag"))
            for id in ids
            for answer in [
                await client.retrieve(id),
                await client.portal.get(f"/result/{id}"),
                await client.try_submit("exit 1", claim(ids.index(id) + 1)),
            ]
        ]

    before = await seen()
    await client.restart()
    async with client.follow() as look:
        await look.kind("listed")

    assert await seen() == before
    listed = [frame.payload for frame in look.frames if frame.kind == "state"]
    assert [payload["id"] for payload in listed] == ids
    assert [payload["exit_code"] for payload in listed] == [0, 3, None]


async def test_a_kill_goes_on_over_a_restart(client: Agent, gate: Gate) -> None:
    """The wish is kept with the payload: it is Killed, whatever run.sh exits with."""
    await client.restart(kill_grace=3600.0)
    payload = await client.submit(f"trap '{gate.wait}; exit 0' TERM; {gate.wait}")
    await gate.reached()
    await client.kill(payload["id"])
    await gate.reached()

    await client.restart()
    seen = (await client.stream.state(payload["id"], "Running")).payload
    gate.open()
    ended = await client.stream.ended(payload["id"])

    assert seen["killed"] is True
    assert (ended["status"], ended["exit_code"]) == ("Killed", 0)
    gate.close()


async def test_what_was_taken_up_can_be_killed(client: Agent, gate: Gate) -> None:
    """As if the client had been there all the time."""
    payload = await client.submit(gate.wait)
    await gate.reached()

    await client.restart()
    answer = await client.kill(payload["id"])

    assert answer.status == 200
    assert (await client.stream.ended(payload["id"]))["status"] == "Killed"
    gate.close()


async def test_many_restarts_lose_nothing(client: Agent, tmp_path: Path) -> None:
    """Jobs come and end all the time, and each runs once."""
    await client.restart(slots=4)
    script = f'echo "$ORCH_JOB_ID" >> {tmp_path}/starts; for i in {{1..3000}}; do :; done'
    ids = []
    for job in range(1, 41):
        ids.append((await client.submit(script, job=job))["id"])
        if job % 5 == 0:
            await client.restart()
    ends = [await client.stream.ended(id) for id in ids]

    assert {end["status"] for end in ends} == {"Completed"}
    starts = sorted(int(line) for line in (tmp_path / "starts").read_text().split())
    assert starts == list(range(1, 41))


async def test_what_was_never_taken_as_a_whole_is_removed(client: Agent) -> None:
    """Folders that a killed client was making, or removing, or receiving into."""
    kept = await client.run("true")
    await client.stop()
    half = client.control(kept["id"] + 1)
    half.mkdir()
    (half / "payload.json.new").write_text("{")
    broken = client.control(kept["id"] + 2)
    broken.mkdir()
    (broken / "payload.json").write_text('{"server": "a-ser')
    (client.work(kept["id"] + 3) / "job").mkdir(parents=True)
    (client.data_path / "tmp" / "upload-1").mkdir()
    (client.data_path / "tmp" / "upload-1" / "run.sh").write_text("true")

    await client.start()

    assert client.left() == [f"payloads/{kept['id']}"]
    # The numbers that were given are not given again.
    assert (await client.submit("true"))["id"] > kept["id"] + 3


async def test_after_a_reboot_what_was_not_acknowledged_is_lost(client: Agent, gate: Gate) -> None:
    """Inputs, exit status and result may all have been cut short: none of it is believed, but
    what can be checked."""
    whole = await client.run("echo x > out.txt", job=1)
    cut = await client.run("echo x > out.txt", job=2)
    invalid = await client.run({"in.txt": "x"}, job=3)
    for job in (4, 5):
        await client.submit(gate.wait, job=job)
        await gate.reached()
    waits = await client.submit("true", job=6)
    await client.stop()
    gate.open(2)
    await client.supervisor_gone()
    # As the files are that an earlier boot has left.
    for path in client.data_path.glob("payloads/*/payload.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "before"}))
    result = client.control(cut["id"]) / "result.zip"
    result.write_bytes(result.read_bytes()[:-1])

    await client.start()
    async with client.follow() as look:
        await look.kind("listed")

    listed = [frame.payload for frame in look.frames if frame.kind == "state"]
    found = {payload["job"]: (payload["status"], payload["lost"]) for payload in listed}
    assert found.pop(whole["job"]) == ("Completed", False)
    assert found.pop(invalid["job"]) == ("Invalid", False)
    assert set(found) == {2, 4, 5, 6}
    assert set(found.values()) == {("Failed", True)}
    assert (await client.try_submit("true", claim(6))).json["id"] == waits["id"]
    gate.close()


@pytest.mark.parametrize(
    ("cause", "status", "fault", "handed_back"),
    [("operator", "Killed", "operator", False), ("hand_back", "Failed", "infrastructure", True)],
)
async def test_a_wish_outlives_a_reboot(
    client: Agent, gate: Gate, cause: str, status: str, fault: str, handed_back: bool
) -> None:
    """It was fsynced before the first signal, so it is believed where nothing else is."""
    await client.restart(kill_grace=3600.0)
    payload = await client.submit(f"trap '{gate.wait}; exit 0' TERM; {gate.wait}")
    await gate.reached()
    if cause == "operator":
        await client.kill(payload["id"])
    else:
        await client.app[RUNNER].hand_back(payload["id"], "no reason", 3600.0)
    await gate.reached()
    await client.stop()
    gate.open()
    await client.supervisor_gone()
    path = client.control(payload["id"]) / "payload.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "before"}))

    await client.start()
    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["fault"]) == (status, fault)
    assert (end["handed_back"], end["exit_code"]) == (handed_back, None)
    gate.close()
