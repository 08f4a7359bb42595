"""CLIENT_TOKEN_FILE: a client answers only who knows its secret."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator_shared.client_token import ClientToken
from orchestrator_shared.protocol import INLINE_LIMIT
from support.agent import claim, form
from support.errors import check_error
from support.gate import Gate
from support.portal import Portal
from support.processes import Program
from support.servers import server_of
from support.system import client_config, client_is_there, running_client, running_system


def token(secret: str = "of-both-sides") -> ClientToken:
    """A token, as its file would give it."""
    return ClientToken(secret)


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Portal]:
    """The HTTP interface of a client that has a token."""
    async with running_client(client_config(tmp_path / "client", client_token=token())) as own:
        yield Portal(own.make_url(""), session)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/live"),
        ("GET", "/load"),
        ("POST", "/submit"),
        ("GET", "/retrieve/1"),
        ("HEAD", "/retrieve/1"),
        ("GET", "/result/1"),
        ("GET", "/retrieve_partial/1"),
        ("POST", "/kill/1"),
        ("GET", "/stream"),
        ("GET", "/no-such-route"),
        ("GET", "/health/"),
        ("GET", "//health"),
    ],
)
@pytest.mark.parametrize(
    "said",
    [None, "", "Bearer ", "Bearer of-both", "Bearer of-both-sides ü", "of-both-sides", "Basic x"],
)
async def test_nobody_else_is_answered(
    client: Portal, method: str, path: str, said: str | None
) -> None:
    """401, and what to do about it."""
    answer = await client.request(
        method, path, headers={} if said is None else {"Authorization": said}
    )

    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    if method != "HEAD":
        check_error(answer, 401, "CLIENT_TOKEN_FILE")


async def test_everybody_may_ask_how_it_is(client: Portal) -> None:
    """Those who watch over machines have no token."""
    assert (await client.get("/health")).json["status"] == "healthy"


async def test_a_submit_without_it_leaves_nothing(client: Portal, tmp_path: Path) -> None:
    """The files are not even looked at."""
    answer = await client.post("/submit", data=form("true"), headers=claim(1))

    check_error(answer, 401, "CLIENT_TOKEN_FILE")
    assert list((tmp_path / "client" / "payloads").iterdir()) == []
    headers = {**claim(1), **token().headers}
    assert (await client.post("/submit", data=form("true"), headers=headers)).status == 200


async def test_a_server_that_has_it_does_all_it_does(tmp_path: Path) -> None:
    """Small jobs and large ones, results, partial results, and a kill."""
    gate = Gate(tmp_path)
    own = {"client_token": token()}
    async with running_system(tmp_path, server=own, client=own) as system:
        portal = system.portal
        small = await portal.upload("echo small")
        large = await portal.upload({
            "run.sh": b"cp input output",
            "input": bytes(range(256)) * (INLINE_LIMIT // 100),
        })  # fmt: skip
        runs = await portal.upload(gate.wait)
        for id in (small, large):
            assert (await portal.ended(id))["status"] == "Completed"
            assert (await portal.get(f"/download/{id}")).status == 200
        assert await gate.reached() == runs
        partial = await portal.get(f"/download_partial/{runs}")
        assert partial.zip.namelist()[0] == "run.sh"
        assert (await portal.post(f"/terminate/{runs}")).json["status"] == "Killed"
    gate.close()


@pytest.mark.parametrize("wrong", [None, "another"], ids=["none", "another"])
async def test_a_client_that_wants_another_token_is_out(tmp_path: Path, wrong: str | None) -> None:
    """That is why its jobs wait, both those it has and those to come; none is given to another or
    fails for it, and they go on once the secret is the same."""
    gate = Gate(tmp_path)
    changes: dict[str, Any] = {
        "client_lost_after": 0.2,
        "client_gone_after": 0.3,
        "client_give_up_after": 0.4,
        "getter_interval": 0.05,
    }
    others: dict[str, Any] = {} if wrong is None else {"client_token": token(wrong)}
    async with running_client(client_config(tmp_path / "client", client_token=token())) as own:
        base = str(own.make_url("")).rstrip("/")
        async with server_of(tmp_path, [base], client_token=token()) as server:
            await client_is_there(server.portal)
            runs = await server.portal.upload(gate.wait)
            assert await gate.reached() == runs
        async with server_of(tmp_path, [base], **changes, **others) as server:
            await server.portal.reached(runs, "Unknown")
            waits = await server.portal.upload("true")
            (row,) = (await server.portal.get("/clients")).json["clients"]
            assert row["state"] == "out"
            assert "CLIENT_TOKEN_FILE" in row["why"]
            record = await server.portal.job(runs)
            assert "CLIENT_TOKEN_FILE" in record["history"][-1]["reason"]
            # Longer than it would take to be gone, and given up.
            await asyncio.sleep(0.6)
            assert (await server.portal.job(runs))["status"] == "Unknown"
            record = await server.portal.job(waits)
            assert (record["status"], record["waiting"]["code"]) == ("Queued", "no_client")
        async with server_of(tmp_path, [base], client_token=token()) as server:
            gate.open()
            for id in (runs, waits):
                record = await server.portal.ended(id)
                assert (record["status"], record["attempt"]) == ("Completed", 1)
    gate.close()


# --- the setting


@pytest.mark.parametrize("program", ["orch-server", "orch-client"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "one line"),
        (b"\n", "one line"),
        (b"two words", "one line"),
        (b"two\nlines", "one line"),
        ("größe".encode(), "one line"),
    ],
)
async def test_a_file_without_a_secret_stops_the_start(
    tmp_path: Path, program: str, content: bytes | None, says: str
) -> None:
    """In one line that names the setting, and does not show what the file holds."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    own = Program(program, tmp_path, {"CLIENT_TOKEN_FILE": str(file)})
    await own.spawn("--port", "0")

    assert await own.exited() == 2
    (line,) = own.log
    assert line.startswith(f"{program}: CLIENT_TOKEN_FILE: ")
    assert says in line
    assert "words" not in line


async def test_white_space_around_the_secret_does_not_count(tmp_path: Path) -> None:
    """A file that an editor wrote ends with a line break."""
    file = tmp_path / "token"
    file.write_text(" of-both-sides\r\n\n")

    assert ClientToken.from_file(str(file)).headers == token().headers


def test_the_secret_is_not_shown() -> None:
    """Not where the settings are, in a log or a traceback."""
    assert "of-both-sides" not in repr(client_config(Path("x"), client_token=token()))


@pytest.mark.parametrize(
    ("host", "secret", "warns"),
    [
        ("0.0.0.0", False, True),  # noqa: S104 - it is what the test is about
        ("0.0.0.0", True, False),  # noqa: S104
        ("127.0.0.1", False, False),
        ("localhost", False, False),
    ],
)
async def test_a_client_that_others_reach_warns_without_one(
    tmp_path: Path, host: str, secret: bool, warns: bool
) -> None:
    """Whoever reaches it could have any command run there."""
    (tmp_path / "token").write_text("of-both-sides")
    settings = {"CLIENT_TOKEN_FILE": str(tmp_path / "token")} if secret else {}
    own = Program("orch-client", tmp_path, settings)
    await own.spawn("--port", "0", "--host", host)
    await own.logged("listening on")

    assert await own.stop() == 0
    warnings = [line for line in own.log if " WARNING " in line]
    assert [("CLIENT_TOKEN_FILE" in line) for line in warnings] == [True] * warns
