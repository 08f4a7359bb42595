"""The socket over which an operator reaches a running server."""

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.config import Config
from orchestrator_server.control import CommandRefused, ControlSocket, NoServer, ask, socket_path
from orchestrator_server.keys import CONFIG, OPERATOR
from orchestrator_shared.errors import SettingError
from support.servers import server_of
from support.system import System, running_system, server_config

#: A path that is too long for the address of a socket.
DEEP = "/".join(["a-folder-with-a-long-name"] * 8)


@pytest.fixture
async def config(system: System) -> Config:
    """Of a server with a client."""
    own: Config = system.server[CONFIG]
    return own


async def _ask(config: Config, method: str, target: str) -> Any:
    return await asyncio.to_thread(ask, config, method, target)


async def _refused(config: Config, method: str, target: str) -> str:
    with pytest.raises(CommandRefused) as refusal:
        await _ask(config, method, target)
    assert refusal.value.exit_code == 1
    return str(refusal.value)


async def test_it_is_for_the_owner_of_the_server_alone(config: Config) -> None:
    """It lies beside the database, with mode 0600."""
    mode = socket_path(config).stat().st_mode
    assert socket_path(config).parent == config.db_path.parent
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_all_clients_are_told(config: Config, system: System) -> None:
    """As GET /clients tells them."""
    (client,) = (await _ask(config, "GET", "/clients"))["clients"]
    assert client["state"] == "up"
    assert client["address"] == system.at_client.base


@pytest.mark.parametrize("by", ["address", "instance", "its beginning"])
async def test_a_client_is_drained_and_resumed(config: Config, by: str) -> None:
    """Whichever of its names is given."""
    (client,) = (await _ask(config, "GET", "/clients"))["clients"]
    name = {"its beginning": client["instance"][:6], **client}[by]

    states = []
    for action in ("drain", "resume"):
        message = (await _ask(config, "POST", f"/clients/{action}?name={name}"))["message"]
        assert client["address"] in message
        states.append((await _ask(config, "GET", "/clients"))["clients"][0]["state"])
    assert states == ["draining", "up"]


async def test_what_cannot_be_done_is_said(config: Config) -> None:
    """In a line: a client that nobody knows, one that is not gone, a server that is not paused."""
    (client,) = (await _ask(config, "GET", "/clients"))["clients"]
    for action in ("gone", "drain", "resume"):
        assert "'nobody'" in await _refused(config, "POST", f"/clients/{action}?name=nobody")
    gone = await _refused(config, "POST", f"/clients/gone?name={client['address']}")
    assert client["address"] in gone
    assert "not paused" in await _refused(config, "POST", "/resume")
    assert "'name'" in await _refused(config, "POST", "/clients/drain")
    assert "is not offered" in await _refused(config, "POST", "/clients/shoot?name=nobody")


async def test_a_deep_folder_is_no_hindrance(tmp_path: Path) -> None:
    """The address of a socket has room for 107 bytes, a path for more."""
    folder = tmp_path / DEEP
    folder.mkdir(parents=True)
    async with running_system(tmp_path, server={"db_path": folder / "db.sqlite"}) as system:
        config = system.server[CONFIG]
        assert len(os.fsencode(socket_path(config))) > 107
        assert len((await _ask(config, "GET", "/clients"))["clients"]) == 1


async def test_without_a_server_that_is_said(tmp_path: Path) -> None:
    """Before its first start, after its stop, and after its end by force."""
    config = server_config(tmp_path / "server")
    for db_path in (config.db_path, tmp_path / "nowhere" / "db.sqlite"):
        with pytest.raises(NoServer, match="No such file"):
            ask(server_config(tmp_path / "server", db_path=db_path), "GET", "/clients")
    async with server_of(tmp_path, []):
        assert await _ask(config, "GET", "/clients") == {"clients": []}
    assert not socket_path(config).exists()
    with pytest.raises(NoServer) as error:
        ask(config, "GET", "/clients")
    assert error.value.exit_code == 1
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(socket_path(config)))
    with pytest.raises(NoServer, match="refused"):
        ask(config, "GET", "/clients")


async def test_the_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    """The lock on the database says that nobody listens there any more."""
    config = server_config(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(socket_path(config)))
    async with server_of(tmp_path, []):
        assert await _ask(config, "GET", "/clients") == {"clients": []}


async def test_a_place_that_is_taken_stops_the_start(tmp_path: Path, system: System) -> None:
    """It is a matter of the path of the database; and what is there stays."""
    (tmp_path / "taken").mkdir()
    control = ControlSocket(system.server[OPERATOR], tmp_path / "taken")
    with pytest.raises(SettingError, match=r"DB_PATH: the socket .* cannot be made"):
        await control.start()
    await control.stop()
    assert (tmp_path / "taken").is_dir()


async def test_a_server_that_ends_meanwhile_is_none(tmp_path: Path) -> None:
    """Who has asked is told so."""
    config = server_config(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(socket_path(config)))
        dying.listen()
        asking = asyncio.create_task(_ask(config, "GET", "/clients"))
        connection, _ = await asyncio.to_thread(dying.accept)
        connection.close()
        with pytest.raises(NoServer):
            await asking
