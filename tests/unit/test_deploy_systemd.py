"""The units and their environment files, as far as that goes without a systemd."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from orchestrator_client.config import Config as ClientConfig
from orchestrator_server.config import Config as ServerConfig
from orchestrator_shared.errors import StartError

REPOSITORY: Final = Path(__file__).parents[2]
FOLDER: Final = REPOSITORY / "deploy/systemd"
SERVER: Final = "orch-server.service"
CLIENT: Final = "orch-client@.service"
ONE_CLIENT: Final = {"SERVICE_EXAMPLE_URL": "http://127.0.0.1:9000"}

Unit = Mapping[str, list[str]]


def read_unit(name: str) -> Unit:
    """The settings of a unit, whatever their section."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def of_unit(name: str) -> dict[str, str]:
    """The environment that a unit sets by itself."""
    return dict(line.split("=", 1) for line in read_unit(name)["Environment"])


def of_file(name: str, *, comments: bool) -> dict[str, str]:
    """The environment that a file sets; with `comments` also what it has as such."""
    pattern = r"^#?([A-Z_]+)=(.*)$" if comments else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, (FOLDER / name).read_text(), re.M))


def documented(program: str) -> set[str]:
    """The settings of a program; another test sees to it that they are all."""
    text = (REPOSITORY / "docs/configuration.md").read_text()
    section = text.partition(f"\n## The {program}\n")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `([A-Z_<>]+)` \|", section, re.M)
    return {name.replace("<NAME>", "EXAMPLE") for name in names}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nothing is set."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})


def test_the_server_has_every_setting() -> None:
    """In its file or, where the machine's layout has it so, in its unit; and none twice."""
    in_file, in_unit = set(of_file("server.env", comments=True)), set(of_unit(SERVER))
    assert in_file | in_unit == documented("server")
    assert not in_file & in_unit


def test_the_client_has_every_setting() -> None:
    """Likewise; `PATH` is there for the jobs."""
    in_file, in_unit = set(of_file("client.env", comments=True)), set(of_unit(CLIENT))
    assert in_file | in_unit == documented("client") | {"PATH"}
    assert not in_file & in_unit


@pytest.mark.usefixtures("environment")
def test_comments_show_the_defaults_of_the_server() -> None:
    """Whoever takes away every # gets the same settings."""
    os.environ.update(of_file("server.env", comments=False))
    assert dict(os.environ).items() >= ONE_CLIENT.items()
    plain = ServerConfig.from_env()
    os.environ.update(of_file("server.env", comments=True))
    assert ServerConfig.from_env() == plain


@pytest.mark.usefixtures("environment")
def test_comments_show_the_defaults_of_the_client() -> None:
    """As for the server."""
    assert of_file("client.env", comments=False) == {}
    plain = ClientConfig.from_env()
    os.environ.update(of_file("client.env", comments=True))
    assert ClientConfig.from_env() == plain


@pytest.mark.parametrize(("unit", "package"), [(SERVER, "server"), (CLIENT, "client")])
def test_it_starts_what_is_installed(unit: str, package: str) -> None:
    """The program of the package, where `install` puts it; and for it a user that there is."""
    project = tomllib.loads(
        (REPOSITORY / f"orchestrator_{package}/pyproject.toml").read_text()
    )["project"]  # fmt: skip
    (program,) = project["scripts"]
    script = (FOLDER / "install").read_text()
    opt = re.search(r"^opt=(.*)$", script, re.M)
    assert opt is not None
    assert "mv -T $opt/new $opt/current" in script
    assert read_unit(unit)["ExecStart"] == [f"{opt[1]}/current/bin/{program}"]
    users = re.findall(r"^u (\S+) ", (FOLDER / "sysusers.conf").read_text(), re.M)
    assert read_unit(unit)["User"][0] in users


@pytest.mark.parametrize("unit", [SERVER, CLIENT])
def test_a_wrong_setting_does_not_start_it_again(unit: str) -> None:
    """Whatever else ends a program does."""
    assert read_unit(unit)["Restart"] == ["on-failure"]
    assert read_unit(unit)["RestartPreventExitStatus"] == [str(StartError.exit_code)]


@pytest.mark.parametrize("unit", [SERVER, CLIENT])
def test_the_token_is_read_from_where_it_is_handed_over(unit: str) -> None:
    """systemd reads the file of root, and the program what systemd has read."""
    ((name, path),) = (text.split(":") for text in read_unit(unit)["LoadCredential"])
    assert of_unit(unit)["CLIENT_TOKEN_FILE"] == f"%d/{name}"
    assert path in read_unit(unit)["AssertPathExists"]
    assert f"z {path} 0600 root root" in (FOLDER / "tmpfiles.conf").read_text()


def test_nothing_ends_jobs_with_the_client() -> None:
    """What systemd would end, empty or give to others when the client ends."""
    unit = read_unit(CLIENT)
    assert unit["KillMode"] == ["process"]
    assert unit["OOMPolicy"] == ["continue"]
    assert not {"PrivateTmp", "RemoveIPC", "RuntimeDirectory", "DynamicUser"} & set(unit)


def test_data_are_below_the_state_directory() -> None:
    """Which systemd makes, and which is all that the programs may write to."""
    assert read_unit(SERVER)["StateDirectory"] == ["orch-server"]
    assert read_unit(CLIENT)["StateDirectory"] == ["orch-client/%i"]
    for name in ("DB_PATH", "DATA_PATH"):
        assert of_unit(SERVER)[name].startswith("/var/lib/orch-server/")
    assert of_unit(CLIENT)["DATA_PATH"] == "/var/lib/orch-client/%i"


def test_the_commands_have_the_paths_of_the_unit() -> None:
    """What an operator calls sees the data of the server that runs."""
    command = (FOLDER / "orch-server").read_text()
    exported = dict(re.findall(r"^export (\w+)=(.*)$", command, re.M))
    assert exported == {name: of_unit(SERVER)[name] for name in ("DB_PATH", "DATA_PATH")}
    (user,), (program,) = read_unit(SERVER)["User"], read_unit(SERVER)["ExecStart"]
    assert f'exec runuser -u {user} -- {program} "$@"' in command


def test_every_file_is_installed() -> None:
    """But for the one that does so, and the one that is copied for each client."""
    script = (FOLDER / "install").read_text()
    names = {path.name for path in FOLDER.iterdir()} - {"install", "client.env"}
    assert [
        name for name in names if not re.search(rf"^.*install -.* {name}\b", script, re.M)
    ] == []
