"""Our client under a server of the original: what such a server sent, played again byte for byte,
is answered as its own client did."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.agent import Agent, claim
from support.original_server import (
    NOTHING,
    VERSIONS,
    ask,
    client_of,
    is_empty,
    kind,
    not_done,
    packed,
    submit,
    submit_of,
    taken_slot,
)
from support.portal import Answer
from support.recorded import Exchange, Scenario, play, recorded


def agrees(ours: Answer, theirs: Answer | None) -> None:
    """An answer tells the server what the one that was recorded did, but for whose it is."""
    assert theirs is not None
    assert (ours.status, kind(ours)) == (theirs.status, kind(theirs)), ours
    if kind(ours) in ("zip", "octet-stream"):
        assert lines(packed(ours)) == lines(packed(theirs))
        assert int(ours.headers["Content-Length"]) == len(ours.body)
    elif kind(ours) == "json" and isinstance(theirs.json, float):
        assert isinstance(ours.json, float)
    elif kind(ours) == "json":
        agrees_in_json(ours.json, theirs.json)


def lines(files: dict[str, bytes]) -> dict[str, set[bytes]]:
    """The lines of each file. A list that run.sh makes of its files may or may not have itself, and
    has a backslash as often as the name does."""
    return {
        name: {line.replace(b"\\\\", b"\\") for line in content.splitlines()} - {b"list.txt"}
        for name, content in files.items()
    }


def agrees_in_json(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """It has the same fields and values; a payload has an id, a place and a process of its own."""
    if not theirs.get("id"):
        assert ours == theirs
        return
    # Version 1 has two fewer.
    assert set(ours) == set(NOTHING) >= set(theirs)
    assert all(type(ours[key]) is type(value) for key, value in theirs.items())
    assert (ours["input"], ours["status"]) == ({}, theirs["status"])
    assert ours["killed"] == theirs.get("killed", False)
    assert 0 < ours["id"] < 2**32
    assert 0 <= ours["pid"] < 2**32


class Replay:
    """Plays what a server sent, for the payloads that this client made of it."""

    def __init__(self, client: Agent) -> None:
        self.client = client
        #: Our ids, by those that were recorded.
        self.ids: dict[str, int] = {}
        #: How many answers were compared that have the server ask again.
        self.asked_again = 0

    async def all(
        self,
        scenario: Scenario,
        before_end: Callable[[], Awaitable[None]],
        otherwise: Callable[[Answer], None] | None = None,
    ) -> None:
        """Play it, and compare. `before_end` comes before an end is waited for; `otherwise` looks
        at the end where it is another than it was."""
        for exchange in scenario.of("server-client"):
            if exchange.path.startswith("/retrieve_partial/"):
                await self.partial(exchange)
            elif not exchange.path.startswith("/retrieve/"):
                await self.one(exchange)
            elif exchange.answer and not_done(exchange.answer):
                answer = await self.play(exchange)
                if not_done(answer):
                    self.asked_again += 1
                    agrees(answer, exchange.answer)
            else:
                await before_end()
                answer = await self.ended(exchange)
                if otherwise is None:
                    agrees(answer, exchange.answer)
                else:
                    otherwise(answer)

    async def one(self, exchange: Exchange) -> Answer:
        """Play one request, and compare."""
        answer = await self.play(exchange)
        agrees(answer, exchange.answer)
        if exchange.path == "/submit" and exchange.answer:
            self.ids[str(exchange.answer.json["id"])] = answer.json["id"]
        return answer

    async def play(self, exchange: Exchange) -> Answer:
        """Send it, with our id in the place of the one that was recorded."""
        route, _, id = exchange.path.rpartition("/")
        return await play(self.client.base, exchange, f"{route}/{self.ids.get(id, id)}")

    async def partial(self, exchange: Exchange) -> None:
        """Ask until run.sh has come as far as it had; whether its exit trap was run by then does
        not matter."""
        assert exchange.answer is not None
        files = {**packed(exchange.answer), ".orchestrator.exit": b""}
        while True:
            answer = await self.play(exchange)
            assert (answer.status, kind(answer)) == (200, "zip")
            if {**packed(answer), ".orchestrator.exit": b""} == files:
                break

    async def ended(self, exchange: Exchange) -> Answer:
        """Ask as such a server does, until it is told of an end."""
        while not_done(answer := await self.play(exchange)):
            pass
        return answer


async def nothing() -> None:
    """An end comes by itself."""


def has_run_without_trap(answer: Answer) -> None:
    """run.sh needs no exit trap here: it is Completed where it was Invalid."""
    assert (answer.status, kind(answer)) == (200, "zip")
    assert packed(answer)["out.txt"] == b"hi\n"


#: Where the end is another than that of the original. Its version 1 looked at no exit status, and
#: without run.sh it left the job Unknown.
OTHERWISE: dict[tuple[str, str], Callable[[Answer], None]] = {
    ("v1", "failed"): is_empty(204),
    ("v1", "no-run-sh"): is_empty(204),
    ("v2", "no-trap"): has_run_without_trap,
}


# --- jobs


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "scenario", ["completed", "failed", "no-run-sh", "no-trap", "server-restart", "names"]
)
async def test_a_job_is_taken_asked_for_and_given_back(
    tmp_path: Path, session: aiohttp.ClientSession, version: str, scenario: str
) -> None:
    """Each answer has the status, the type and the fields that the recorded one had. While it waits
    for a slot the server hears that it runs."""
    async with client_of(tmp_path, session, version, slots=1) as client:
        replay = Replay(client)
        async with taken_slot(tmp_path, client) as free:
            await replay.all(recorded(version, scenario), free, OTHERWISE.get((version, scenario)))

    ended_at_once = {("v1", "failed"), ("v1", "no-run-sh"), ("v2", "no-run-sh")}
    assert (replay.asked_again > 0) == ((version, scenario) not in ended_at_once)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_that_starts_again_goes_on(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """What runs is asked for by the same id, and the next job gets another: each its own files."""
    exchanges = recorded(version, "client-restart").of("server-client")
    first, second = (e for e in exchanges if e.path == "/submit")
    asked = next(e for e in exchanges if e.answer and not_done(e.answer))
    async with client_of(tmp_path, session, version) as client:
        replay = Replay(client)
        taken = (await replay.one(first)).json["id"]
        await client.restart()
        await replay.one(asked)
        replay.ids["2"] = (await play(client.base, second)).json["id"]
        ends = [
            await replay.ended(replace(asked, start=f"GET /retrieve/{n} HTTP/1.1")) for n in (2, 1)
        ]

    assert replay.ids == {"1": taken, "2": replay.ids["2"]}
    assert taken < replay.ids["2"]
    of_second, of_first = map(packed, ends)
    assert (of_first.get("a.txt"), of_first.get("b.txt")) == (b"a\n", None)
    assert (of_second.get("a.txt"), of_second.get("b.txt")) == (None, b"b\n")


async def test_a_job_is_killed(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """200 to each /kill, also the second; its files as they are can be had before and after."""
    async with client_of(tmp_path, session, "v2", kill_grace=0.0) as client:
        replay = Replay(client)
        await replay.all(recorded("v2", "killed-running"), nothing)
        assert replay.asked_again == 2
        id = replay.ids["1"]
        while not_done(answer := await ask(client, id)):
            pass
    loc = answer.json["loc"]
    assert answer.json == {**NOTHING, "id": id, "status": "Killed", "killed": True, "loc": loc}


async def test_a_job_that_has_ended_is_killed_all_the_same(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """200, as its server has decided it by itself; the result stays here."""
    async with client_of(tmp_path, session, "v2", slots=1) as client:
        replay = Replay(client)
        async with taken_slot(tmp_path, client) as free:
            await replay.all(recorded("v2", "killed-completed"), free)
        assert replay.asked_again == 1
        assert kind(await ask(client, replay.ids["1"])) == "zip"


async def test_a_queued_job_cannot_be_killed_here(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Its server asks for /kill/0: 404, and nothing else is touched."""
    async with client_of(tmp_path, session, "v2") as client:
        replay = Replay(client)
        await replay.all(recorded("v2", "killed-queued"), nothing)
        assert replay.asked_again == 1
        assert not_done(await ask(client, replay.ids["1"]))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_submit_without_a_file_is_refused(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """400, with a payload of id 0 at version 2; version 1 did not answer at all."""
    (exchange,) = recorded(version, "bad-uploads").of("server-client")
    async with client_of(tmp_path, session, version) as client:
        answer = await play(client.base, exchange)
        assert client.left() == []

    assert (exchange.answer is None) == (version == "v1")
    if version == "v1":
        is_empty(400)(answer)
    else:
        agrees(answer, exchange.answer)
        assert (answer.status, answer.json) == (400, NOTHING)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_else_is_asked_is_answered_alike(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """Pings, health, load, and ids that there are not. Only that a payload is not there version 2
    hears as its failure: it would ask again for ever."""
    exchanges = recorded(version, "misc").of("server-client")
    assert len(exchanges) >= 5
    async with client_of(tmp_path, session, version) as client:
        for exchange in exchanges:
            if (version, exchange.path) == ("v2", "/retrieve/99"):
                answer = await play(client.base, exchange)
                failed = {**NOTHING, "id": 99, "status": "Failed"}
                assert (answer.status, answer.json) == (200, failed)
            else:
                await Replay(client).one(exchange)


# --- names of files


@pytest.mark.parametrize("version", VERSIONS)
async def test_files_have_the_names_that_they_had(
    tmp_path: Path, session: aiohttp.ClientSession, version: str
) -> None:
    """As on the disk of the recorded client, but that it doubled a backslash; each file holds the
    name that its user gave it."""
    scenario = recorded(version, "names")
    sent = scenario.of("server-client")[0]
    async with (
        client_of(tmp_path, session, version, slots=1) as client,
        taken_slot(tmp_path, client),
    ):
        id = (await play(client.base, sent)).json["id"]
        folder = client.work(id) / "job"
        found = {file.name: file.read_text() for file in folder.iterdir()}

    noted = json.loads(scenario.note.partition(": ")[2])
    # run.sh makes list.txt; the last line of what it lists is empty.
    assert set(found) == {name.replace("\\\\", "\\") for name in noted} - {"list.txt", ""}
    assert len(found) == 12
    del found["run.sh"]
    assert {name: content.rpartition("/")[2] for name, content in found.items()} == {
        name: name for name in found
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("a%22b", "a%22b"),
        ("%0D%0A", "%0D%0A"),
        (r"a\"b", 'a"b'),
        (r"a\\b", r"a\b"),
        ("a; filename=b", "a; filename=b"),
        ("größe 1.txt", "größe 1.txt"),
    ],
)
async def test_a_name_is_not_decoded(
    tmp_path: Path, session: aiohttp.ClientSession, version: str, sent: str, name: str
) -> None:
    """Such a server encodes nothing in it: it has only two escapes."""
    async with (
        client_of(tmp_path, session, version, slots=1) as client,
        taken_slot(tmp_path, client),
    ):
        id = await submit(client, {sent: "x"})
        assert [file.name for file in (client.work(id) / "job").iterdir()] == [name]


async def test_a_name_of_a_server_of_ours_is_decoded(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """%22 is a quotation mark there, under the same setting."""
    sent = submit_of({"a%22b": "x"})
    own = tuple(f"{name}: {value}" for name, value in claim(7).items())
    async with (
        client_of(tmp_path, session, "v2", slots=1) as client,
        taken_slot(tmp_path, client),
    ):
        answer = await play(client.base, replace(sent, headers=(*sent.headers, *own)))
        folder = client.work(answer.json["id"]) / "job"
        assert [file.name for file in folder.iterdir()] == ['a"b']
