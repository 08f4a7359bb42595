"""The command orch-server: how it starts, what it cannot start with, what it logs, how it stops."""

import contextlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import unused_port

from orchestrator_server import cli
from orchestrator_shared import __version__
from support.errors import check_error
from support.portal import Portal
from support.processes import Program

#: A client that is not there.
AWAY = "http://127.0.0.1:9"


@contextlib.asynccontextmanager
async def program(folder: Path, **environment: str) -> AsyncIterator[Program]:
    """A server with these settings, not yet started."""
    server = Program("orch-server", folder, environment)
    folder.mkdir(exist_ok=True)
    try:
        yield server
    finally:
        await server.close()


async def answers(portal: Portal) -> None:
    """Wait until a server answers, where its log does not say that it does."""
    while True:
        with contextlib.suppress(aiohttp.ClientConnectorError):
            await portal.get("/live")
            return


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"MAX_UPLOAD_SIZE": "plenty"}, "MAX_UPLOAD_SIZE"),
        ({"SERVICE_A_URL": "localhost:9000"}, "SERVICE_A_URL"),
        ({"SERVICE_A_MAX_RUNS": "3"}, "SERVICE_A_URL"),
        ({"DATA_PATH": "file/data"}, "DATA_PATH"),
        ({"DB_PATH": "file/db.sqlite"}, "DB_PATH"),
        ({"DB_PATH": "folder"}, "DB_PATH"),
        ({"PORT": "{taken}"}, "HOST, PORT"),
    ],
    ids=str,
)
async def test_a_setting_that_cannot_be_used_stops_the_start(
    tmp_path: Path, taken: int, settings: dict[str, str], named: str
) -> None:
    """Exit code 2, and one line that names it and says why; no traceback."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    settings = {name: value.format(taken=taken) for name, value in settings.items()}
    async with program(tmp_path, **{"PORT": "0", **settings}) as server:
        await server.spawn()

        assert await server.exited() == 2
        errors = [line for line in server.log if not re.match(r"\d{4}-", line)]
        (line,) = errors
        assert re.fullmatch(rf"orch-server: {named}: .+", line)


async def test_a_flag_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    """As the variable does that it overrides."""
    async with program(tmp_path, PORT="0") as server:
        await server.spawn("--port", "http")

        assert await server.exited() == 2
        assert server.log == ["orch-server: PORT: 'http' is not a whole number"]


async def test_a_second_server_on_the_same_files_does_not_start(tmp_path: Path) -> None:
    """Exit code 2, with a line that says what kind of program has them; the first goes on."""
    async with program(tmp_path) as first, program(tmp_path, PORT="0") as second:
        await first.start()
        await second.spawn()

        assert await second.exited() == 2
        (line,) = second.log
        assert re.match(r"orch-server: (DB|DATA)_PATH: .* is in use by an orch-server", line)
        assert await first.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_announces_its_services_and_stops_when_told(tmp_path: Path, number: int) -> None:
    """A line per service with clients and limits; flags count for more than the environment."""
    async with program(
        tmp_path, PORT="1", HOST="192.0.2.1", SERVICE_A_URL=f"{AWAY},http://127.0.0.1:10",
        SERVICE_A_RUNS_PER_USER="3", SERVICE_B_URL=AWAY, SERVICE_B_MAX_RUNS="7",
        SERVICE_B_MAX_RUN="7",
    ) as server:  # fmt: skip
        await server.start("--host", "127.0.0.1")

        log = "\n".join(server.log)
        assert re.search(
            rf"service a: clients {AWAY}, http://127.0.0.1:10, .* RUNS_PER_USER 3", log
        )
        assert re.search(rf"service b: clients {AWAY}, MAX_RUNS 7, RUNS_PER_USER 5", log)
        assert re.search("WARNING SERVICE_B_MAX_RUN is no setting", log)
        assert await server.stop(number) == 0
        assert "Traceback" not in "\n".join(server.log)


async def test_without_a_service_it_starts_warns_and_refuses(tmp_path: Path) -> None:
    """It can be set up before its first client."""
    async with program(tmp_path) as server, aiohttp.ClientSession() as session:
        await server.start()

        assert any(re.search("WARNING no service is set up", line) for line in server.log)
        answer = await Portal(server.url, session).try_upload({"run.sh": "true"})
        check_error(answer, 400, "none is set up")


@pytest.mark.parametrize(
    ("level", "changes", "requests"),
    [("info", True, False), ("debug", True, True), ("warning", False, False)],
)
async def test_the_log_tells_what_its_level_asks_for(
    tmp_path: Path, level: str, changes: bool, requests: bool
) -> None:
    """A line per change of state; requests only at debug; nothing of it at warning."""
    environment = {"SERVICE_A_URL": AWAY, "LOG_LEVEL": level}
    async with program(tmp_path, **environment) as server, aiohttp.ClientSession() as session:
        port = unused_port()
        await server.spawn("--port", str(port))
        portal = Portal(f"http://127.0.0.1:{port}", session)
        await answers(portal)
        id = await portal.upload("true", user_id=7, service="a")
        await portal.post(f"/terminate/{id}")
        await portal.get("/nope")
        assert await server.stop() == 0

        log = "\n".join(server.log)
        began = f"job {id} user 7 a - → Queued attempt 0"
        ended = f"job {id} user 7 a Queued → Killed attempt 0 reason: terminated on request"
        assert [line in log for line in (began, ended)] == [changes] * 2
        assert ('"POST /upload HTTP/1.1" 201' in log) == requests
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", x) for x in server.log)


def test_its_version_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--version names program and version, and starts nothing."""
    monkeypatch.setattr(sys, "argv", ["orch-server", "--version"])
    with pytest.raises(SystemExit) as raised:
        cli.main()

    assert raised.value.code == 0
    assert capsys.readouterr().out == f"orch-server {__version__}\n"


def test_its_flags_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--help names each flag, and the variable that it overrides."""
    monkeypatch.setattr(sys, "argv", ["orch-server", "--help"])
    with pytest.raises(SystemExit) as raised:
        cli.main()

    assert raised.value.code == 0
    out = capsys.readouterr().out
    for word in ("--host", "HOST", "--port", "PORT", "--version"):
        assert word in out
