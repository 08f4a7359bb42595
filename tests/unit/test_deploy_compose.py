"""deploy/compose, as far as that goes without an engine."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from orchestrator_client.config import Config as ClientConfig
from orchestrator_server.config import Config as ServerConfig
from orchestrator_shared import settings

ROOT: Final = Path(__file__).resolve().parents[2]
FILE: Final = ROOT / "deploy/compose/compose.yaml"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(FILE.read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
CLIENTS: Final = [name for name in SERVICES if name.startswith("client-")]
#: Where .env has another value than the default, for a reason that it gives.
OTHERS: Final = {
    "SERVICE_EXAMPLE_URL": "http://client-1:9000,http://client-2:9000",
    "SLOTS": "1",
    "ON_STOP": "hand-back",
}


def settings_of_env() -> dict[str, str]:
    """What .env sets."""
    text = (FILE.parent / ".env").read_text()
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.M))


ENV: Final = settings_of_env()


def documented(program: str) -> dict[str, str]:
    """The settings of a program and their defaults; tests/unit/test_docs.py compares the code."""
    text = (ROOT / "docs/configuration.md").read_text()
    section = text.partition(f"\n## The {program}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z_<>]+)` \| ([^|]*) \|", section, re.M)
    return {
        name.replace("<NAME>", "EXAMPLE"): default.strip("`") if default[0] == "`" else ""
        for name, default in rows
    }


def environment(service: str) -> dict[str, str]:
    """What a container gets: the environment of compose.yaml comes before .env."""
    own = SERVICES[service]
    assert own["env_file"] == ".env"
    assert all(isinstance(value, str) for value in own["environment"].values())
    return {**ENV, **own["environment"]}


@pytest.mark.parametrize("program", ["server", "client"])
def test_every_setting_is_there(program: str) -> None:
    """In .env with its default, or set by the container, and not both."""
    by_container = set(SERVICES["server" if program == "server" else "client-1"]["environment"])
    described = documented(program)

    assert not by_container & set(ENV)
    assert by_container <= set(described)
    # That of all services: one for all of them would be a setting of theirs.
    described.pop("SERVICE_EXAMPLE_MAX_AGE", None)
    # Here the server is ours.
    described.pop("LEGACY_WIRE", None)
    assert ENV["SERVICE_EXAMPLE_MAX_AGE"] == ""
    for name in set(described) - by_container:
        assert ENV[name] == OTHERS.get(name, described[name]), name


def test_env_has_nothing_else() -> None:
    """What is no setting of a program is one of compose.yaml, which uses it."""
    used = set(re.findall(r"\$\{([A-Z_]+)\}", FILE.read_text()))

    assert used == set(ENV) - set(documented("server")) - set(documented("client"))


def test_the_programs_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and clients read what their containers get, and understand each other."""
    token = tmp_path / "token"
    token.write_text("secret")
    configs: dict[str, Any] = {}
    for service in ("server", *CLIENTS):
        own = environment(service)
        assert own["CLIENT_TOKEN_FILE"] == "/run/secrets/client-token"
        monkeypatch.setattr(os, "environ", {**own, "CLIENT_TOKEN_FILE": str(token)})
        configs[service] = (ServerConfig if service == "server" else ClientConfig).from_env()

    served = configs["server"].services["example"].clients
    assert {client.base for client in served} == {
        f"http://{name}:{configs[name].port}" for name in CLIENTS
    }
    assert all(configs[name].service == "example" for name in CLIENTS)
    assert configs["server"].ignored == ()
    assert SERVICES["server"]["ports"] == [f"${{PUBLISH}}:{configs['server'].port}"]
    assert ENV["PUBLISH"].startswith("127.0.0.1:")
    # The longest that a client's stop may take: see docs/configuration.md.
    stop = settings.seconds(ENV["CLIENT_STOP_PERIOD"])
    assert all(stop >= configs[name].stop_grace + 5 for name in CLIENTS)
    assert settings.seconds(SERVICES["server"]["stop_grace_period"]) >= 5


def test_the_versions_agree() -> None:
    """Images are named as the packages' version says, and built on the same base."""
    package = tomllib.loads((ROOT / "shared/pyproject.toml").read_text())["project"]
    [base] = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.M)

    assert ENV["IMAGE_VERSION"] == package["version"]
    assert ENV["BASE"] == base
    for name, service in SERVICES.items():
        target = service["build"]["target"]
        assert service["image"] == f"job-orchestrator/{target}:${{IMAGE_VERSION}}"
        assert target == ("example" if name in CLIENTS else "server")
        assert service["build"]["args"] == {"BASE": "${BASE}"}
        assert (FILE.parent / service["build"]["context"]).resolve() == ROOT


@pytest.mark.parametrize("name", list(SERVICES))
def test_a_service_is_contained(name: str) -> None:
    """No root that can be written, no capability, no new one; a log with an end."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert not {"privileged", "cap_add", "user", "devices", "pid", "ipc"} & set(service)
    assert service["restart"] == ("no" if name == "token" else "unless-stopped")
    if name != "token":
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
        assert service["depends_on"] == {"token": {"condition": "service_completed_successfully"}}


def test_the_networks() -> None:
    """Each client shares one with the server alone, without a way out, and publishes no port."""
    attached = {name: set(service.get("networks", ())) for name, service in SERVICES.items()}

    for name in CLIENTS:
        [own] = attached[name]
        assert {other for other, networks in attached.items() if own in networks} == {
            name,
            "server",
        }
        assert COMPOSE["networks"][own]["internal"] is True
        assert "ports" not in SERVICES[name]
    # It listens in the network to which no client is attached.
    [front] = attached["server"] - {network for name in CLIENTS for network in attached[name]}
    assert environment("server")["HOST"] in SERVICES["server"]["networks"][front]["aliases"]
    assert SERVICES["token"]["network_mode"] == "none"


def test_the_volumes() -> None:
    """Each has one of its own; the secret's is written by nobody but who makes it."""
    mounts = {name: service["volumes"] for name, service in SERVICES.items()}

    for name in ("server", *CLIENTS):
        assert mounts[name] == [f"{name}:/data", "token:/run/secrets:ro"]
    assert mounts["token"] == ["token:/run/secrets"]
    assert set(COMPOSE["volumes"]) == set(SERVICES)
