"""Our server over clients of the original, of both versions, as they answered when recorded."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.api.parameters import WAIT_MOST
from support.original_client import OriginalClient, Payload, original_client
from support.portal import Portal
from support.recorded import recorded
from support.servers import OwnServer, server_of
from support.system import client_is_there

BOTH = pytest.mark.parametrize("version", ["v1", "v2"])
V1 = pytest.mark.parametrize("version", ["v1"])
V2 = pytest.mark.parametrize("version", ["v2"])
#: How often each payload is asked for here (seconds).
OFTEN: dict[str, Any] = {"getter_interval": 0.02}


@pytest.fixture
async def original(version: str) -> AsyncIterator[OriginalClient]:
    """A client of the original."""
    async with original_client(version) as own:
        yield own


@pytest.fixture
async def server(original: OriginalClient, tmp_path: Path) -> AsyncIterator[OwnServer]:
    """A server whose service `example` it runs."""
    async with server_of(tmp_path, [original.base], **OFTEN) as own:
        await client_is_there(own.portal)
        yield own


async def row(server: OwnServer) -> dict[str, Any]:
    """How its one client stands."""
    (found,) = (await server.portal.get("/clients")).json["clients"]
    assert isinstance(found, dict)
    return found


async def goes(
    portal: Portal, original: OriginalClient, script: str = "true", **files: bytes
) -> tuple[int, Payload]:
    """Upload a job, and wait until it is there."""
    id = await portal.upload({"run.sh": script, **files})
    return id, await original.submits.get()


async def result(portal: Portal, id: int) -> dict[str, bytes]:
    """The files of a job that is Completed."""
    assert (await portal.ended(id))["status"] == "Completed"
    return await files(portal, id)


async def files(portal: Portal, id: int) -> dict[str, bytes]:
    """The files that the server has of a job, whatever its end."""
    zipped = (await portal.get(f"/download_partial/{id}")).zip
    return {name: zipped.read(name) for name in zipped.namelist()}


# --- the way of a job


@BOTH
async def test_a_job_runs_there(server: OwnServer, original: OriginalClient) -> None:
    """It is sent, asked for, and its zip is served; small files and large ones."""
    for input in (b"small", bytes(range(256)) * 4096):
        id, payload = await goes(server.portal, original, input=input)
        record = await server.portal.reached(id, "Running")
        assert (record["dest_id"], record["attempt"]) == (str(payload.id), 1)
        payload.ends(output=b"made of it")

        made = await result(server.portal, id)

        assert (made["input"], made["output"]) == (input, b"made of it")
        assert (await server.portal.job(id))["exit_code"] == 0
    assert (await row(server))["version"] == f"original {original.version[1]}"


@BOTH
async def test_it_is_asked_for_what_it_has_after_a_restart(
    original: OriginalClient, tmp_path: Path
) -> None:
    """Of this server: under the same id, and nothing is sent twice."""
    async with server_of(tmp_path, [original.base], **OFTEN) as server:
        id, payload = await goes(server.portal, original)
        await server.portal.reached(id, "Running")
    payload.ends(output=b"its own")
    async with server_of(tmp_path, [original.base], **OFTEN) as server:
        assert (await result(server.portal, id))["output"] == b"its own"
    assert original.submits.empty()


@BOTH
async def test_it_runs_as_many_as_the_service_may(original: OriginalClient, tmp_path: Path) -> None:
    """It tells no slots: MAX_RUNS, or 10."""
    for most, service in ((10, {}), (12, {"max_runs": 12})):
        path = tmp_path / str(most)
        path.mkdir()
        async with server_of(
            path, [original.base], service={"runs_per_user": 50, **service}, **OFTEN
        ) as server:
            ids = [await server.portal.upload("true") for _ in range(most + 1)]
            payloads = [await original.submits.get() for _ in range(most)]
            last = await server.portal.job(ids[-1])
            assert (last["status"], last["waiting"]["code"]) == ("Queued", "service_quota")
            payloads[0].ends()
            await original.submits.get()
        await original.start_again(old_folders=False)


@BOTH
async def test_files_keep_their_names(server: OwnServer, original: OriginalClient) -> None:
    """Each part has the head that a server of the original writes, spaces and all."""
    wire = recorded(original.version, "names").of("server-client")[0].body
    heads = set(re.findall(rb"Content-Disposition: [^\r\n]*", wire))
    names = [
        re.sub(rb"\\(.)", rb"\1", re.search(rb'filename="((?:[^"\\]|\\.)*)"', h)[1]).decode()  # type: ignore[index]
        for h in heads
    ]
    assert {"my file.pdb", "größe.pdb", "日本.pdb", "semi%20colon.pdb"} <= set(names)

    id = await server.portal.upload({name: name for name in names})
    payload = await original.submits.get()

    ours = {re.search(rb"Content-Disposition: [^\r\n]*", h)[0] for h in payload.heads}  # type: ignore[index]
    # The client keeps both of two backslashes: a name gets to it as it is with one.
    assert heads - ours == {rb'Content-Disposition: form-data; name="back\slash.pdb"; '
                            rb'filename="back\\slash.pdb"'}  # fmt: skip
    assert "back\\slash.pdb" in payload.files
    assert {n: c.decode() for n, c in payload.files.items() if n in names} == {n: n for n in names}
    payload.ends()
    assert set(names) <= set(await result(server.portal, id))


# --- other ends


@V1
async def test_version_1_does_not_look_at_the_exit_status(
    server: OwnServer, original: OriginalClient
) -> None:
    """So it is looked for in the zip; where there is none, it is Completed."""
    id, payload = await goes(server.portal, original)
    payload.ends(3, output=b"half")
    record = await server.portal.ended(id)
    assert (record["status"], record["exit_code"], record["fault"]) == ("Failed", 3, "user")
    assert (await files(server.portal, id))["output"] == b"half"

    id, payload = await goes(server.portal, original)
    payload.state = "zip"
    assert (await server.portal.ended(id))["status"] == "Completed"


@V1
@pytest.mark.parametrize("status", ["204", "410", "500"])
async def test_version_1_says_that_it_failed(
    server: OwnServer, original: OriginalClient, status: str
) -> None:
    """By three status codes."""
    id, payload = await goes(server.portal, original)
    payload.state = status

    record = await server.portal.ended(id)

    assert (record["status"], record["fault"]) == ("Failed", "user")
    assert status in record["reason"]


@V2
async def test_version_2_says_that_it_failed(server: OwnServer, original: OriginalClient) -> None:
    """Its files are asked for on another route, and kept."""
    id, payload = await goes(server.portal, original)
    payload.ends(3, output=b"half")
    payload.state = "failed"

    record = await server.portal.ended(id)

    assert (record["status"], record["exit_code"], record["fault"]) == ("Failed", 3, "user")
    assert (await files(server.portal, id))["output"] == b"half"


@BOTH
async def test_what_it_does_not_run_is_invalid(server: OwnServer, original: OriginalClient) -> None:
    """Also a run.sh without the trap that version 2 wants, which it does not say itself."""
    id, payload = await goes(server.portal, original)
    payload.state = "400" if original.version == "v1" else "invalid"

    record = await server.portal.ended(id)

    assert record["status"] == "Invalid"
    assert "run.sh" in record["reason"]
    assert "trap" in record["reason"]


@V2
async def test_a_job_is_terminated(server: OwnServer, original: OriginalClient) -> None:
    """The client is told, and its files are kept."""
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")

    terminating = asyncio.create_task(server.portal.post(f"/terminate/{id}"))
    assert await original.kills.get() == payload.id
    payload.made = {"output": b"half"}
    payload.state = "killed"

    assert (await terminating).json["status"] == "Killed"
    assert (await files(server.portal, id))["output"] == b"half"


@V1
async def test_version_1_cannot_end_what_it_runs(
    server: OwnServer, original: OriginalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wish is kept; the job ends as it ends."""
    monkeypatch.setattr("orchestrator_server.terminating.PATIENCE", 0.1)
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")

    answer = await server.portal.post(f"/terminate/{id}")

    assert (answer.status, answer.json["status"]) == (202, "Running")
    assert (await server.portal.job(id))["kill_requested"] is True
    payload.ends()
    assert (await server.portal.ended(id))["status"] == "Completed"
    assert original.kills.empty()


@BOTH
async def test_the_files_as_they_are_now(server: OwnServer, original: OriginalClient) -> None:
    """Version 2 shows them; version 1 cannot."""
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")
    payload.made = {"log": b"half of it"}

    answer = await server.portal.get(f"/download_partial/{id}")

    if original.version == "v1":
        assert answer.status == 502
    else:
        assert answer.zip.read("log") == b"half of it"


@BOTH
async def test_a_job_that_runs_for_ever_is_ended_by_its_limit(
    original: OriginalClient, tmp_path: Path
) -> None:
    """After a reboot version 2 says Running for all that it had."""
    limited = {"max_runtime": 0.2}
    async with server_of(tmp_path, [original.base], service=limited, **OFTEN) as server:
        id, payload = await goes(server.portal, original)

        record = await server.portal.ended(id)

        assert (record["status"], record["fault"]) == ("Failed", "limit")
        if original.version == "v2":
            assert await original.kills.get() == payload.id


# --- lost payloads


@BOTH
async def test_what_it_does_not_know_is_lost(server: OwnServer, original: OriginalClient) -> None:
    """By its own answer, twice: the job is run again."""
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")
    looks = original.asked.count(f"GET /retrieve/{payload.id}")

    del original.held[payload.id]
    again = await original.submits.get()

    assert original.asked.count(f"GET /retrieve/{payload.id}") >= looks + 2
    between = original.asked[-1 - original.asked[::-1].index(f"GET /retrieve/{payload.id}") :]
    assert "POST /submit" in between
    record = await server.portal.reached(id, "Running")
    assert (record["attempt"], record["dest_id"]) == (2, str(again.id))
    again.ends(output=b"the second")
    assert (await result(server.portal, id))["output"] == b"the second"


@BOTH
async def test_a_404_of_a_proxy_proves_nothing(server: OwnServer, original: OriginalClient) -> None:
    """Only the answer of the client itself does: however often another comes."""
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")
    original.proxied = (
        b"HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\nGone"
    )
    for _ in range(5):
        await original.seen("GET /retrieve/")
    original.proxied = None
    payload.ends(output=b"the first")

    assert (await result(server.portal, id))["output"] == b"the first"
    assert (await server.portal.job(id))["attempt"] == 1


@BOTH
async def test_one_404_between_others_proves_nothing(
    server: OwnServer, original: OriginalClient
) -> None:
    """The client was about to start, say."""
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")
    for _ in range(3):
        del original.held[payload.id]
        await original.seen("GET /retrieve/")
        original.held[payload.id] = payload
        await original.seen("GET /retrieve/")
    payload.ends()

    await result(server.portal, id)
    assert (await server.portal.job(id))["attempt"] == 1


@BOTH
async def test_a_client_that_is_away_has_its_jobs_yet(
    original: OriginalClient, tmp_path: Path
) -> None:
    """They are Unknown until it answers; with the same ids they go on."""
    async with server_of(tmp_path, [original.base], client_lost_after=0.2, **OFTEN) as server:
        id, payload = await goes(server.portal, original)
        await original.vanish()
        await server.portal.reached(id, "Unknown")
        await original.appear()
        payload.ends(output=b"its own")
        assert (await result(server.portal, id))["output"] == b"its own"
        assert (await server.portal.job(id))["attempt"] == 1


# --- ids that begin again


@BOTH
async def test_ids_that_begin_again_are_noticed(
    server: OwnServer, original: OriginalClient
) -> None:
    """At the next submit: what it had before is lost and run again, and nobody gets what is
    another's, though both had the same id."""
    first, before = await goes(server.portal, original, script="first")
    await server.portal.reached(first, "Running")
    second_before, other = await goes(server.portal, original, script="second")
    await server.portal.reached(second_before, "Running")
    original.shows_all_live = True
    await original.start_again(old_folders=False)
    third, after = await goes(server.portal, original, script="third")
    assert after.id == before.id == 1

    again = [await original.submits.get() for _ in range(2)]
    original.shows_all_live = False
    for payload in (after, *again):
        payload.ends(output=payload.files["run.sh"])

    for id, script in ((first, b"first"), (second_before, b"second"), (third, b"third")):
        assert (await result(server.portal, id))["output"] == script
    records = [await server.portal.job(id) for id in (first, second_before, third)]
    assert [record["attempt"] for record in records] == [2, 2, 1]
    assert other.id == 2


@BOTH
async def test_another_jobs_files_are_nobodys_result(
    original: OriginalClient, tmp_path: Path
) -> None:
    """Old folders are there yet: the zip of the former payload 1 is refused, the client is out
    with the remedy, and once that was followed the job is run again."""
    async with server_of(tmp_path, [original.base], **OFTEN) as server:
        first, payload = await goes(server.portal, original, script="first")
        payload.ends(output=b"of the first")
        assert (await result(server.portal, first))["output"] == b"of the first"

        await original.start_again(old_folders=True)
        second, wrong = await goes(server.portal, original, script="second")
        assert wrong.id == payload.id
        wrong.ends(output=b"of the second")
        async with asyncio.timeout(WAIT_MOST):
            while (stands := await row(server))["state"] != "out":
                await asyncio.sleep(0.01)
        assert "empty its data folder" in stands["why"]
        health = (await server.portal.get("/health")).json
        assert "empty its data folder" in health["clients_out"][original.base]
        record = await server.portal.reached(second, "Queued")
        assert record["waiting"]["code"] == "no_client"
        assert original.submits.empty()

        await original.start_again(old_folders=False)
        right = await original.submits.get()
        right.ends(output=b"of the second")
        assert (await result(server.portal, second))["output"] == b"of the second"
        assert (await row(server))["state"] == "up"
        assert (await server.portal.get("/health")).json["clients_out"] == {}


@V2
async def test_another_jobs_files_are_not_shown_either(
    server: OwnServer, original: OriginalClient
) -> None:
    """As they are now: they come as a whole before any of them is passed on."""
    id, payload = await goes(server.portal, original)
    await server.portal.reached(id, "Running")
    payload.files[".orchestrator.job"] = b'{"server": "x", "job": 1, "attempt": 1}'

    answer = await server.portal.get(f"/download_partial/{id}")

    assert answer.status == 502
    assert "another job" in answer.json["message"]


@BOTH
async def test_a_zip_without_a_marker(server: OwnServer, original: OriginalClient) -> None:
    """It is taken from a client whose ids never went back: the job removed it. From another it
    may be anybody's."""
    id, payload = await goes(server.portal, original)
    payload.ends(output=b"its own")
    del payload.files[".orchestrator.job"]
    assert (await result(server.portal, id))["output"] == b"its own"

    await original.start_again(old_folders=False)
    id, payload = await goes(server.portal, original)
    payload.ends(output=b"whose?")
    del payload.files[".orchestrator.job"]
    again = await original.submits.get()
    assert again.files["run.sh"] == b"true"
    reasons = [e["reason"] for e in (await server.portal.job(id))["history"] if e["reason"]]
    assert any(".orchestrator.job" in reason for reason in reasons)


@BOTH
async def test_ids_are_known_after_a_restart_of_the_server(
    original: OriginalClient, tmp_path: Path
) -> None:
    """The highest one is kept: nobody is told while the server is down."""
    async with server_of(tmp_path, [original.base], **OFTEN) as server:
        first, payload = await goes(server.portal, original)
        await server.portal.reached(first, "Running")
        assert payload.id == 1
    await original.start_again(old_folders=False)
    original._next = 2
    original.held[1] = Payload(1, {"run.sh": b"somebody else's"}, [])
    original._next = 1
    async with server_of(tmp_path, [original.base], **OFTEN) as server:
        second, taken = await goes(server.portal, original)
        assert taken.id == 1
        again = await original.submits.get()
        assert again.files["run.sh"] == b"true"
        record = await server.portal.reached(first, "Running")
        assert record["attempt"] == 2
        assert (await server.portal.job(second))["attempt"] == 1


# --- a submit of which nobody knows what became


@BOTH
async def test_a_submit_without_an_answer_is_sent_again(
    server: OwnServer, original: OriginalClient
) -> None:
    """The same attempt; that the client has a later id shows that its ids did not go back."""
    first, payload = await goes(server.portal, original)
    await server.portal.reached(first, "Running")
    original.answers = False
    second, _ = await goes(server.portal, original)
    original.answers = True
    again = await original.submits.get()
    assert again.id == 3
    payload.state = "500" if original.version == "v1" else "invalid"

    record = await server.portal.ended(first)
    assert record["status"] == ("Failed" if original.version == "v1" else "Invalid")
    again.ends(output=b"of the second")
    assert (await result(server.portal, second))["output"] == b"of the second"
    assert (await server.portal.job(second))["attempt"] == 1


@BOTH
async def test_an_end_in_doubt_is_not_believed(server: OwnServer, original: OriginalClient) -> None:
    """The client was started again, and nobody knows what id it gave: it was that of a job that
    ran before. That job has no end but its own."""
    first, _ = await goes(server.portal, original, script="first")
    await server.portal.reached(first, "Running")
    original.answers = False
    # Nobody asks for the first while there is no payload 1.
    original.proxied = b"HTTP/1.1 503 Starting\r\ncontent-length: 0\r\n\r\n"
    await original.start_again(old_folders=False)
    second, taken = await goes(server.portal, original, script="second")
    assert taken.id == 1
    original.proxied = None
    taken.state = "500" if original.version == "v1" else "invalid"
    for _ in range(4):
        await original.seen("GET /retrieve/1$")
    assert (await server.portal.job(first))["status"] in ("Running", "Unknown")

    original.answers = True
    payloads = [await original.submits.get() for _ in range(2)]
    for payload in payloads:
        payload.ends(output=payload.files["run.sh"])
    for id, script, attempt in ((first, b"first", 2), (second, b"second", 1)):
        assert (await result(server.portal, id))["output"] == script
        assert (await server.portal.job(id))["attempt"] == attempt


# --- what is no client of the original


@pytest.mark.parametrize("version", ["v2"])
async def test_a_web_server_is_no_client(original: OriginalClient, tmp_path: Path) -> None:
    """One that says 404 to everything, or has a page for everything."""
    for answer in (
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<p/>",
    ):
        original.instead = answer
        async with server_of(tmp_path, [original.base]) as server:
            for _ in range(2):
                await original.seen("GET /load")
            assert (await row(server))["state"] == "lost"
            assert (await server.portal.get("/health")).json["clients_up"] == 0
