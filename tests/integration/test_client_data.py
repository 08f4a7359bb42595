"""DATA_PATH and DB_PATH: who has them, ids that never repeat, and a disk that is full."""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from orchestrator_client import identity, runner
from orchestrator_client.app import create_app
from orchestrator_shared.errors import SettingError
from support.agent import Agent, agent, claim
from support.gate import Gate
from support.limits import files_no_larger_than
from support.system import client_config


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client."""
    async with agent(tmp_path / "client", session) as own:
        yield own


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The wall clock by which ids are given; it stands still unless a test sets it."""
    own = SimpleNamespace(now=2_000_000_000.9)
    monkeypatch.setattr(identity, "time", SimpleNamespace(time=lambda: own.now))
    return own


async def ids(client: Agent, count: int) -> list[int]:
    """The ids of so many new payloads."""
    return [(await client.submit("true"))["id"] for _ in range(count)]


async def test_an_id_is_the_time_or_one_more_than_the_highest(
    client: Agent, clock: SimpleNamespace
) -> None:
    """Whichever is larger: several in a second, a clock that goes on, one that goes back."""
    found = await ids(client, 3)
    clock.now = 2_000_000_100.0
    found += await ids(client, 2)
    clock.now = 1_000_000_000.0
    found += await ids(client, 1)

    assert found == [2_000_000_000 + n for n in (0, 1, 2, 100, 101, 102)]


async def test_an_id_never_comes_again(client: Agent, clock: SimpleNamespace) -> None:
    """Not after a restart, not after its payload was dropped, not after a refused one."""
    first = await ids(client, 3)
    for job in (1, 2, 3):
        await client.stream.ended(first[job - 1])
        await client.stream.acknowledge(job)
        await client.stream.state(first[job - 1], "Cleaned")
    clock.now = 1_000_000_000.0
    await client.restart()
    with files_no_larger_than(1):
        assert (await client.try_submit("true", claim(77))).status == 507

    second = await ids(client, 2)

    assert min(second) > max(first)


async def test_an_emptied_disk_repeats_no_id(client: Agent, clock: SimpleNamespace) -> None:
    """Ids are no less than the time, so they go on where they were; it is another instance."""
    first = await ids(client, 1)
    await client.stream.ended(first[0])
    before = (client.data_path / "instance").read_text()
    await client.stop()
    await client.supervisor_gone()
    shutil.rmtree(client.data_path)
    clock.now += 1

    await client.start()

    assert await ids(client, 1) == [2_000_000_001]
    assert (client.data_path / "instance").read_text() != before


async def test_the_index_can_be_a_file(client: Agent, tmp_path: Path) -> None:
    """It is made anew at each start, from what lies in DATA_PATH."""
    db_path = tmp_path / "index.sqlite"
    await client.restart(db_path=str(db_path))
    payload = await client.run("true", job=1)
    await client.stop()
    connection = sqlite3.connect(db_path)
    assert connection.execute("SELECT id FROM payloads").fetchall() == [(payload["id"],)]
    connection.execute("DELETE FROM payloads")
    connection.commit()
    connection.close()

    await client.start()

    again = await client.try_submit("true", claim(1))
    assert (again.json["id"], again.json["status"]) == (payload["id"], "Completed")


@pytest.mark.parametrize("kind", ["database", "text"])
async def test_a_file_that_is_no_index_is_left_alone(tmp_path: Path, kind: str) -> None:
    """DB_PATH may name the server's database by mistake: it is not ours to remove."""
    path = tmp_path / "other.sqlite"
    if kind == "database":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE jobs (id)")
        connection.commit()
        connection.close()
    else:
        path.write_text("what somebody needs")
    before = path.read_bytes()

    with pytest.raises(SettingError, match=r"^DB_PATH: .*other\.sqlite is not an index"):
        create_app(client_config(tmp_path / "client", db_path=str(path)))

    assert path.read_bytes() == before


@pytest.mark.parametrize("db_path", ["nowhere/index.sqlite", "client", "client/lock/x"])
async def test_an_index_that_cannot_be_written_is_named(tmp_path: Path, db_path: str) -> None:
    """One line with the setting; DATA_PATH is free again for the next try."""
    (tmp_path / "client").mkdir()
    (tmp_path / "nowhere").write_text("a file")

    with pytest.raises(SettingError, match=r"^DB_PATH: "):
        create_app(client_config(tmp_path / "client", db_path=str(tmp_path / db_path)))

    identity.Identity(tmp_path / "client").release()


async def test_two_clients_have_an_index_each(client: Agent, tmp_path: Path) -> None:
    """The file is locked as long as its client lives."""
    db_path = str(tmp_path / "index.sqlite")
    await client.restart(db_path=db_path)

    with pytest.raises(SettingError, match=r"^DB_PATH: .*in use by an orch-client"):
        create_app(client_config(tmp_path / "second", db_path=db_path))

    assert (await client.run("true"))["status"] == "Completed"


async def test_two_clients_have_a_data_path_each(client: Agent) -> None:
    """A second one says who has it, and the first goes on."""
    with pytest.raises(SettingError, match=r"^DATA_PATH: .*in use by an orch-client"):
        create_app(client_config(client.data_path))

    assert (await client.run("true"))["status"] == "Completed"


async def test_a_result_waits_until_there_is_room(
    client: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ends nothing: the payload is Running until its files are packed."""
    monkeypatch.setattr(runner, "PACK_AGAIN", 0.01)
    gate = Gate(tmp_path)
    payload = await client.submit(f"head -c 100000 /dev/urandom > out; {gate.wait}")
    await gate.reached()
    with files_no_larger_than(1000):
        gate.open()
        while (await client.portal.get("/health")).json["slots_in_use"]:
            pass
        assert (await client.retrieve(payload["id"])).json["status"] == "Running"
        other = await client.run({"in.txt": "x"})
        assert other["status"] == "Invalid"

    end = await client.stream.ended(payload["id"])

    assert end["status"] == "Completed"
    assert len((await client.result(payload["id"])).read("out")) == 100_000
    gate.close()


async def test_files_that_can_never_be_packed_end_their_payload(
    client: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every retry has an end: the payload is lost then, and says why."""
    monkeypatch.setattr(runner, "PACK_AGAIN", 0.0)
    gate = Gate(tmp_path)
    payload = await client.submit(gate.wait)
    await gate.reached()
    # Nothing can be put in the place of a directory that holds something.
    (client.control(payload["id"]) / "result.zip").mkdir()
    (client.control(payload["id"]) / "result.zip" / "in the way").touch()
    gate.open()

    end = await client.stream.ended(payload["id"])

    assert (end["status"], end["fault"], end["lost"]) == ("Failed", "infrastructure", True)
    assert "cannot be packed" in end["reason"]
    await client.restart()
    assert (await client.stream.ended(payload["id"])) == end
    gate.close()
