"""The Dockerfile, as far as that goes without an engine."""

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from orchestrator_client.config import Config as ClientConfig
from orchestrator_client.config import OnStop
from orchestrator_server.config import Config as ServerConfig

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = (ROOT / "deploy/Dockerfile").read_text()
IMAGES: Final = ("server", "client", "example", "prodigy")
PROGRAMS: Final[dict[str, Callable[[], ServerConfig | ClientConfig]]] = {
    "server": ServerConfig.from_env,
    "client": ClientConfig.from_env,
}


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each stage: what it is from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ")
    own: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, name = rest.split(" AS ")
            own = []
            found[name] = base, own
        else:
            own.append((instruction, rest))
    return found


def all_of(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of those that it is from."""
    base, own = stages()[name]
    return [*(all_of(base) if base in stages() else ()), *own]


def last(name: str, instruction: str) -> str:
    """The one of several instructions that counts."""
    return [rest for kind, rest in all_of(name) if kind == instruction][-1]


def program_of(name: str) -> str:
    """Which of the two programs an image runs."""
    return "server" if name == "server" else "client"


def of_packages(key: str) -> set[str]:
    """What the three packages say of themselves."""
    folders = ("shared", "orchestrator_server", "orchestrator_client")
    texts = [(ROOT / folder / "pyproject.toml").read_text() for folder in folders]
    return {tomllib.loads(text)["project"][key] for text in texts}


def test_the_version_is_that_of_the_packages() -> None:
    """What the labels say, and the name in the first comment."""
    assert of_packages("version") == {last("server", "ARG").removeprefix("VERSION=")}
    [version] = of_packages("version")
    assert f"-t job-orchestrator/client:{version} ." in DOCKERFILE
    assert of_packages("license") == {"MIT"}
    assert 'licenses="MIT"' in last("common", "LABEL")


@pytest.mark.parametrize("name", IMAGES)
def test_user_and_init(name: str) -> None:
    """Each ends as the user of fixed ids, and begins with an init."""
    assert last(name, "USER") == "orchestrator"
    assert any("useradd --uid 10001 --gid 10001" in rest for _, rest in all_of(name))
    assert last(name, "ENTRYPOINT") == '["/usr/bin/tini", "--"]'
    assert last(name, "VOLUME") == "/data"
    assert f'title="job-orchestrator {name}"' in last(name, "LABEL")


@pytest.mark.parametrize("name", IMAGES)
def test_program(name: str) -> None:
    """What an image runs, and asks for its health, is what the packages install."""
    program = f"orch-{program_of(name)}"
    scripts = tomllib.loads(
        (ROOT / f"orchestrator_{program_of(name)}" / "pyproject.toml").read_text()
    )["project"]["scripts"]

    assert program in scripts
    assert last(name, "CMD") == f'["{program}"]'
    assert last(name, "HEALTHCHECK").endswith(f'CMD ["{program}", "probe"]')


@pytest.mark.parametrize("name", IMAGES)
def test_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of an image are some of its program, and keep everything below /data."""
    set_here = dict(re.findall(r"(\w+)=(\S+)", last(name, "ENV")))
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    unset = PROGRAMS[program_of(name)]()
    set_here.pop("PATH", None)
    for setting, value in set_here.items():
        monkeypatch.setenv(setting, value)

    config = PROGRAMS[program_of(name)]()

    for setting in set_here:
        assert getattr(config, setting.lower()) != getattr(unset, setting.lower()) or (
            setting == "PORT"
        )
    assert config.host == "0.0.0.0"  # noqa: S104
    assert last(name, "EXPOSE") == str(config.port)
    # In a folder of their own: a volume may come with a `lost+found`.
    paths = [config.data_path]
    if isinstance(config, ServerConfig):
        paths.append(config.db_path.parent)
    assert all(Path("/data") in path.parents for path in paths)
    assert isinstance(config, ServerConfig) or config.on_stop is OnStop.HAND_BACK


@pytest.mark.parametrize("name", IMAGES)
def test_the_last_stages_only_install(name: str) -> None:
    """A compiler and the secrets of the build are for the stages of the wheels alone."""
    commands = " ".join(rest for kind, rest in all_of(name) if kind == "RUN")

    assert "gcc" not in commands
    assert "type=secret" not in commands
    installs = re.findall(r"(?<!apt-get )\binstall (?!-)?--no-cache-dir.*?(?:&&|$)", commands)
    assert installs
    assert all("--no-index" in install for install in installs)
    assert any("gcc" in rest for _, rest in all_of("prodigy-wheels"))


def test_the_context_is_what_is_copied() -> None:
    """`.dockerignore` lets through what the Dockerfile copies, and nothing more."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        rest.split()[0].rstrip("/")
        for _, own in stages().values()
        for kind, rest in own
        if kind == "COPY"
    }

    assert "*" in ignored
    assert let_through == copied
    assert all((ROOT / path).exists() for path in copied)


def test_make_builds_every_image() -> None:
    """Each of the images is a stage that `make images` builds."""
    [listed] = re.findall(r"^IMAGES \?= (.*)$", (ROOT / "Makefile").read_text(), re.M)

    assert tuple(listed.split()) == IMAGES
    assert set(IMAGES) <= set(stages())
