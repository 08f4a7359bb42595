"""GET /retrieve, /result and /retrieve_partial, in each state of a payload."""

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_shared.protocol import H_ATTEMPT, H_JOB, H_PROTOCOL, H_SERVER
from support.agent import Agent, agent, claim
from support.errors import check_error
from support.gate import Gate

ROUTES = ("/retrieve", "/result", "/retrieve_partial")


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with one slot."""
    async with agent(tmp_path / "client", session, slots=1) as own:
        yield own


async def states(client: Agent, gate: Gate) -> dict[str, int]:
    """A payload in each state, by its name."""
    found = {
        "Completed": await client.run("echo done > out.txt"),
        "Failed": await client.run("echo half > out.txt; exit 3"),
        "Invalid": await client.run({"in.txt": "no run.sh"}),
    }
    found["Cleaned"] = await client.run("true", job=500)
    await client.stream.acknowledge(500)
    await client.stream.state(found["Cleaned"]["id"], "Cleaned")
    found["Running"] = await client.submit(f"echo now > out.txt; {gate.wait}")
    await gate.reached()
    found["Prepared"] = await client.submit({"run.sh": "true", "in.txt": "waits"})
    killed = await client.submit("true")
    found["Killed"] = (await client.kill(killed["id"])).json
    return {name: payload["id"] for name, payload in found.items()}


async def test_every_state_has_its_answer(client: Agent, tmp_path: Path) -> None:
    """200 with the zip, 202 with the payload, 204 or 404: to GET as to HEAD."""
    gate = Gate(tmp_path)
    expected = {
        "/retrieve": {"Completed": 200, "Prepared": 202, "Running": 202},
        "/result": {"Completed": 200, "Failed": 200, "Killed": 200},
        "/retrieve_partial": {"Cleaned": 404},
    }
    otherwise = {"/retrieve": 204, "/result": 404, "/retrieve_partial": 200}

    for state, id in (await states(client, gate)).items():
        for route in ROUTES:
            status = expected[route].get(state, otherwise[route])
            got = await client.portal.get(f"{route}/{id}")
            head = await client.portal.request("HEAD", f"{route}/{id}")
            assert (route, state, got.status, head.status) == (route, state, status, status)
            assert head.body == b""
            if status == 200:
                assert got.headers["Content-Type"] == "application/zip"
                assert got.zip.testzip() is None
            elif status == 202:
                assert (got.json["id"], got.json["status"]) == (id, state)
            elif status == 204:
                assert got.body == b""
            else:
                check_error(got, 404, id=id)
    gate.close()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("id", ["1", "0", "9223372036854775807", "9" * 30])
async def test_there_is_no_such_payload(client: Agent, route: str, id: str) -> None:
    """404, with the body that every error has."""
    answer = await client.portal.get(f"{route}/{id}")

    check_error(answer, 404, "payload", id=int(id) if int(id) < 2**63 else 0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("id", ["", "x", "-1", "1.0", "1/2"])
async def test_what_is_no_id_is_not_found(client: Agent, route: str, id: str) -> None:
    """404, not 500."""
    assert (await client.portal.get(f"{route}/{id}")).status == 404


@pytest.mark.parametrize("route", ["/retrieve", "/result"])
async def test_a_result_is_the_same_bytes_each_time(client: Agent, route: str) -> None:
    """With their tag and their digest, also after a restart."""
    id = (await client.run("seq 100000 > out.txt"))["id"]

    first = await client.portal.get(f"{route}/{id}")
    second = await client.portal.get(f"{route}/{id}")
    head = await client.portal.request("HEAD", f"{route}/{id}")
    await client.restart()
    third = await client.portal.get(f"{route}/{id}")

    assert first.body == second.body == third.body
    digest = hashlib.sha256(first.body)
    for answer in (first, second, head, third):
        encoded = base64.b64encode(digest.digest()).decode()
        assert answer.headers["Repr-Digest"] == f"sha-256=:{encoded}:"
        assert answer.headers["ETag"] == f'"{digest.hexdigest()}"'
        assert answer.headers["Content-Length"] == str(len(first.body))
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("route", ["/retrieve", "/result"])
async def test_a_transfer_can_be_gone_on_with(client: Agent, route: str) -> None:
    """Range, If-Range and If-None-Match, as RFC 9110 has them."""
    id = (await client.run("head -c 100000 /dev/urandom > out"))["id"]
    whole = await client.portal.get(f"{route}/{id}")
    size = len(whole.body)

    async def ask(**headers: str) -> tuple[int, bytes, str | None]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await client.portal.get(f"{route}/{id}", headers=named)
        return answer.status, answer.body, answer.headers.get("Content-Range")

    tag = whole.headers["ETag"]
    assert await ask(Range="bytes=0-9") == (206, whole.body[:10], f"bytes 0-9/{size}")
    rest = (206, whole.body[50_000:], f"bytes 50000-{size - 1}/{size}")
    assert await ask(Range="bytes=50000-") == rest
    assert await ask(Range="bytes=50000-", If_Range=tag) == rest
    assert await ask(Range="bytes=50000-", If_Range='"x"') == (200, whole.body, None)
    assert (await ask(Range=f"bytes={size}-"))[0::2] == (416, f"bytes */{size}")
    assert await ask(If_None_Match=tag) == (304, b"", None)


@pytest.mark.parametrize("route", ROUTES)
async def test_only_the_attempt_that_is_asked_for_is_given(client: Agent, route: str) -> None:
    """404 where the id is another job's or another attempt's; without headers anybody may ask."""
    id = (await client.run("true", job=5, attempt=2))["id"]

    async def ask(headers: dict[str, str]) -> int:
        return (await client.portal.get(f"{route}/{id}", headers=headers)).status

    assert await ask({}) == 200
    assert await ask(claim(5, 2)) == 200
    assert await ask(claim(6, 2)) == 404
    assert await ask(claim(5, 1)) == 404
    assert await ask(claim(5, 3)) == 404
    assert await ask(claim(5, 2, server="another")) == 404
    assert await ask({H_JOB: "5", H_SERVER: "a-server"}) == 400
    assert await ask({H_JOB: "5", H_ATTEMPT: "2"}) == 400
    assert await ask({**claim(5, 2), H_PROTOCOL: "0"}) == 426


async def test_the_partial_result_is_the_working_directory_now(
    client: Agent, tmp_path: Path
) -> None:
    """Of a payload that runs: its files and what it has printed so far; no exit code."""
    gate = Gate(tmp_path)
    payload = await client.submit(f"echo half > out.txt; echo so far; {gate.wait}; rm out.txt")
    await gate.reached()

    answer = await client.portal.get(f"/retrieve_partial/{payload['id']}")

    names = {"run.sh", "out.txt", ".orchestrator/stdout.log", ".orchestrator/stderr.log"}
    assert set(answer.zip.namelist()) == names
    assert answer.zip.read("out.txt") == b"half\n"
    assert answer.zip.read(".orchestrator/stdout.log") == b"so far\n"
    gate.close()


async def test_the_partial_result_of_one_that_waits_is_its_input(
    client: Agent, tmp_path: Path
) -> None:
    """A Prepared payload has nothing else yet."""
    gate = Gate(tmp_path)
    await client.submit(gate.wait)
    await gate.reached()
    payload = await client.submit({"run.sh": "true", "in.txt": "hello"})

    answer = await client.portal.get(f"/retrieve_partial/{payload['id']}")

    assert sorted(answer.zip.namelist()) == ["in.txt", "run.sh"]
    gate.close()


@pytest.mark.parametrize("end", ["exit 0", "exit 1"])
async def test_the_partial_result_of_an_ended_one_is_its_result(client: Agent, end: str) -> None:
    """Byte by byte what /result gives."""
    id = (await client.run(f"echo x > out.txt; {end}"))["id"]

    partial = await client.portal.get(f"/retrieve_partial/{id}")

    assert partial.body == (await client.portal.get(f"/result/{id}")).body


async def test_a_result_that_is_gone_from_the_disk_is_not_found(client: Agent) -> None:
    """404, not a broken transfer: its server then knows that it is lost."""
    payload = await client.run("true")
    (client.control(payload["id"]) / "result.zip").unlink()

    check_error(await client.retrieve(payload["id"]), 404, id=payload["id"])
