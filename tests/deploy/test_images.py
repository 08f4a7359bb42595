"""The images, as an engine has built them."""

import re
import secrets
from pathlib import Path

import pytest

from deploy.building import IMAGES, VERSION, image, inspect
from deploy.engine import BASE, ROOT, Engine

pytestmark = pytest.mark.deploy

EXAMPLES = ROOT / "examples"
#: How much each adds to its base at most, in MB: about a tenth more than it does.
SIZES = {"server": 55, "client": 65, "example": 65, "prodigy": 170}
#: The restrictions under which every container has to work.
RESTRICTED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")


def run(engine: Engine, name: str, *command: str, flags: tuple[str, ...] = ()) -> str:
    """What a command prints in a new container of an image."""
    return engine.docker("run", "--rm", *RESTRICTED, *flags, name, *command)


@pytest.mark.parametrize("name", IMAGES)
def test_user_and_labels(engine: Engine, name: str) -> None:
    """Each runs as a user of fixed ids, behind an init, and says what it is."""
    config = inspect(engine, image(name))["Config"]

    program = "orch-server" if name == "server" else "orch-client"
    assert run(engine, image(name), "id").strip() == (
        "uid=10001(orchestrator) gid=10001(orchestrator) groups=10001(orchestrator)"
    )
    assert config["User"] == "orchestrator"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert config["Cmd"] == [program]
    assert config["Healthcheck"]["Test"] == ["CMD", program, "probe"]
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION
    assert config["Labels"]["org.opencontainers.image.title"] == f"job-orchestrator {name}"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert run(engine, image(name), program, "--version").split()[-1] == VERSION


@pytest.mark.parametrize("name", IMAGES)
def test_size(engine: Engine, name: str) -> None:
    """None of them is much larger than it has to be."""
    added = inspect(engine, image(name))["Size"] - inspect(engine, BASE)["Size"]

    assert added / 10**6 < SIZES[name]


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_of_the_build_is_left(engine: Engine, name: str) -> None:
    """No compiler, no wheels, no cache, and nothing of the secrets of the build."""
    look = (
        "command -v cc gcc; ls -A -d /mnt/* /src /wheels /root/.cache /var/lib/apt/lists/*; "
        "cat /etc/pip.conf; true"
    )
    found = run(engine, image(name), "sh", "-c", f"({look}) 2>/dev/null")
    trusted = "sha256sum /etc/ssl/certs/ca-certificates.crt"

    assert found == ""
    assert run(engine, image(name), "sh", "-c", trusted) == run(engine, BASE, "sh", "-c", trusted)


@pytest.mark.parametrize("name", IMAGES)
def test_bytecode_is_there(engine: Engine, name: str) -> None:
    """What a program imports need not be compiled at each start: nothing could keep it."""
    program = "orch-server" if name == "server" else "orch-client"
    # It says of each module whether it was taken from bytecode (.pyc), or compiled (.py).
    look = f"python=/opt/orchestrator/bin/python; $python -v /usr/local/bin/{program} --help"
    printed = run(engine, image(name), "sh", "-c", f"{look} 2>&1")

    assert re.search(r"code object from '/opt/orchestrator/.*\.pyc'", printed)
    assert not re.findall(r"code object from '/.*\.py'", printed)


@pytest.mark.parametrize("name", IMAGES)
def test_only_the_volume_can_be_written(engine: Engine, name: str) -> None:
    """Beside /data there is what every container has of its own: shared memory and queues."""
    look = "find / -path /proc -prune -o ! -type l ! -type c -writable -print 2>/dev/null; true"
    found = run(engine, image(name), "sh", "-c", look).splitlines()

    outside = {path for path in found if not path.startswith("/data")}
    assert "/data" in found
    # /run/secrets is empty here, and where it is used it is mounted read-only.
    assert outside <= {"/dev/shm", "/dev/mqueue", "/run/secrets"}  # noqa: S108
    attempt = "touch /run/secrets/new /tmp/new /usr/new 2>&1"
    assert run(engine, image(name), "sh", "-c", f"{attempt}; true").count("Read-only") == 3


@pytest.mark.parametrize(("name", "job"), [("example", "interface"), ("prodigy", "prodigy")])
def test_example(engine: Engine, name: str, job: str) -> None:
    """The image of an example can run it, and it gives the result that it has to."""
    expected = {path.name: path.read_text() for path in (EXAMPLES / job / "expected").iterdir()}
    copied = "cp /examples/interface/*.p* . && cp /examples/$JOB/run.sh ."
    script = f"{copied} && bash run.sh >&2 && cd /data && tail -n +1 $RESULTS"
    flags = ("-v", f"{EXAMPLES}:/examples:ro", "-e", f"JOB={job}", "-e")

    for result, content in expected.items():
        printed = run(engine, image(name), "sh", "-c", script, flags=(*flags, f"RESULTS={result}"))
        assert printed.endswith(content)


def test_an_image_of_ones_own(engine: Engine) -> None:
    """Three lines from `client` make the image of a service, which runs as the same user."""
    printed = run(engine, "own", "sh", "-c", "id -u; echo 6*7 | bc")

    assert printed.split() == ["10001", "42"]


@pytest.mark.parametrize("name", ["server", "client"])
def test_health_check(engine: Engine, tmp_path: Path, name: str) -> None:
    """It passes where the program runs, with a shared secret or without, and else fails."""
    token = tmp_path / "client-token"
    token.write_text(secrets.token_hex())
    token.chmod(0o444)
    given = ("-v", f"{token}:/run/token:ro", "-e", "CLIENT_TOKEN_FILE=/run/token")
    [check] = [inspect(engine, image(name))["Config"]["Healthcheck"]["Test"][1:]]
    for flags in ((), given):
        id = engine.docker("run", "--detach", *RESTRICTED, *flags, image(name)).strip()
        try:
            ask = f"until {' '.join(check)}; do sleep 0.1; done"
            engine.docker("exec", id, "timeout", "30", "sh", "-c", ask)
        finally:
            engine.docker("rm", "--force", id)
    printed = run(engine, image(name), "sh", "-c", f"{' '.join(check)} || echo status $?")
    assert "does not answer" in printed
    assert printed.endswith("status 1\n")
