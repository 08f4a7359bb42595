"""A Debian with systemd of its own, as a machine to install on: booted by systemd-nspawn."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

REPOSITORY: Final = Path(__file__).parents[2]
PACKAGES: Final = ("shared", "orchestrator_server", "orchestrator_client")
#: Where the machine has the checkout.
CHECKOUT: Final = Path("/root/job-orchestrator")
#: What a Debian has that is installed with Python.
INCLUDE: Final = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates,curl,unzip"
#: How long anything on the machine may take (seconds).
PATIENCE: Final = 120.0
LOOK: Final = 0.1
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def wait_until(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for what tells nobody that it has happened."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"after {patience:g} s still not: {what}"
        time.sleep(LOOK)


class Machine:
    """A machine with a network of its own, which has nothing but the loopback."""

    def __init__(self, root: Path, binds: Mapping[Path, Path]) -> None:
        """`root` is its root folder; `binds` has folders here for paths there."""
        self.root = root
        self.binds = binds
        self._console = root.with_name("console.log")
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> None:
        """Start it, and wait until all that starts with it has started."""
        # Where systemd does not run it cannot be asked for a scope.
        scope = [] if Path("/run/systemd/system").exists() else ["--keep-unit"]
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", *scope),
                    *("--private-network", "--console=read-only", "--resolv-conf=off"),
                    # Without these its systemd cannot keep a unit from addresses.
                    *("--capability=CAP_BPF", "--system-call-filter=bpf"),
                    *("--timezone=off", f"--machine={self.root.name}", f"--directory={self.root}"),
                    *(f"--bind={here}:{there}" for there, here in self.binds.items()),
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._find_init(self._nspawn)
        wait_until(lambda: self._has_booted(), "booted")

    def _find_init(self, nspawn: "subprocess.Popen[bytes]") -> None:
        def find() -> bool:
            assert nspawn.poll() is None, self._console.read_text()
            children = psutil.Process(nspawn.pid).children()
            self._init = next((p.pid for p in children if p.name() == "systemd"), 0)
            return self._init > 0

        wait_until(find, "its process 1 is there")

    def _has_booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).strip()
        assert state != "degraded", self.run("systemctl", "--failed")
        return state == "running"

    def power_off(self) -> None:
        """Stop it, and wait for its end."""
        if self._nspawn is not None:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("systemctl", "poweroff")
            try:
                self._nspawn.wait(PATIENCE)
            finally:
                self._nspawn.kill()
                _remove_groups()

    def run(
        self,
        *words: str,
        check: bool = True,
        stdin: str = "",
        user: str = "root",
        **environment: str,
    ) -> str:
        """Run a command there; gives back all that it wrote."""
        become = () if user == "root" else ("runuser", "-u", user, "--")
        done = subprocess.run(
            [
                *("nsenter", "--target", str(self._init), "--root", "--wdns=" + str(CHECKOUT)),
                *("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"),
                *("env", "--ignore-environment", "HOME=/root", "PATH=" + PATH),
                *(f"{name}={value}" for name, value in environment.items()),
                *become,
                *words,
            ],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file there."""
        self.run("tee", path, stdin=text)

    def show(self, unit: str, property: str) -> str:
        """What systemd has for a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", property, unit).strip()

    def journal(self, unit: str) -> list[str]:
        """What a unit has said in this boot, without systemd's own lines."""
        text = self.run("journalctl", "-b", "-o", "json", f"_SYSTEMD_UNIT={unit}.service")
        return [json.loads(line)["MESSAGE"] for line in text.splitlines()]


class CurlPortal:
    """A portal on the machine, which has curl."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def get(self, path: str) -> Any:
        """The JSON of an answer."""
        return json.loads(self._machine.run("curl", "-sS", "http://127.0.0.1:5000" + path))

    def upload(self, script: str, service: str = "example") -> int:
        """Upload a job that is this run.sh, and give its id."""
        answer = json.loads(
            self._machine.run(
                *("curl", "-sS", "-F", "user_id=1", "-F", "service=" + service),
                *("-F", "file=@-;filename=run.sh", "http://127.0.0.1:5000/upload"),
                stdin=script,
            )
        )
        assert answer["status"] == "Queued", answer
        id: int = answer["id"]
        return id

    def job(self, id: int) -> dict[str, Any]:
        """The record of a job."""
        record: dict[str, Any] = self.get(f"/jobs/{id}")
        return record

    def reached(self, id: int, *statuses: str) -> dict[str, Any]:
        """The record of a job once it is in one of these states."""
        wait_until(lambda: self.job(id)["status"] in statuses, f"job {id} is {statuses}")
        return self.job(id)

    def file(self, id: int, name: str) -> str:
        """A file of the result of a Completed job."""
        url = f"http://127.0.0.1:5000/download/{id}"
        return self._machine.run(
            "bash", "-c", f"curl -sSf -o /root/{id}.zip {url} && unzip -p /root/{id}.zip {name}"
        )


def debian(parts: Path) -> Path:
    """The tar of a fresh Debian 12 with systemd; made where it is not there."""
    tar = parts / "machine.tar"
    if not tar.exists():
        root, new = parts / "machine", parts / "machine.tar.new"
        shutil.rmtree(root, ignore_errors=True)
        _quietly("debootstrap", "--variant=minbase", "--include=" + INCLUDE, "bookworm", str(root))
        _quietly("tar", "-C", str(root), "-cf", str(new), ".")
        shutil.rmtree(root)
        new.rename(tar)
    return tar


def wheels(folder: Path) -> Path:
    """All that pip needs there, as the machine has no network."""
    # Debian 12 has this one, and some of the wheels are built for no other.
    assert sys.version_info[:2] == (3, 11), "test-deploy needs Python 3.11 for the units"
    wanted: list[str] = []
    for package in PACKAGES:
        project = tomllib.loads((REPOSITORY / package / "pyproject.toml").read_text())
        wanted += project["build-system"]["requires"]
        wanted += [d for d in project["project"]["dependencies"] if "orchestrator" not in d]
    _quietly(sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(folder), *wanted)
    return folder


def checkout(folder: Path) -> Path:
    """A copy of what an installation needs of the repository."""
    generated = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in (*PACKAGES, "deploy"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=generated)
    return folder


def set_version(folder: Path, version: str) -> str:
    """Make another version of a checkout; gives back the one that it was."""
    project = tomllib.loads((folder / "shared/pyproject.toml").read_text())["project"]
    was: str = project["version"]
    files = [folder / package / "pyproject.toml" for package in PACKAGES]
    for file in (*files, folder / "shared/src/orchestrator_shared/__init__.py"):
        text = re.sub(
            rf'(version__ = "|version = "|==){was}"', rf'\g<1>{version}"', file.read_text()
        )
        file.write_text(text)
    return was


@contextlib.contextmanager
def machine(folder: Path, parts: Path) -> Iterator[Machine]:
    """A fresh machine with a checkout, below this folder; it has booted."""
    root = folder / "orchestrated"
    root.mkdir()
    _quietly("tar", "-C", str(root), "-xf", str(debian(parts)))
    binds = {CHECKOUT: checkout(folder / "checkout"), Path("/wheels"): wheels(folder / "wheels")}
    fresh = Machine(root, binds)
    try:
        fresh.boot()
        yield fresh
    finally:
        fresh.power_off()
        shutil.rmtree(root)


def _remove_groups() -> None:
    """Remove the control groups that systemd-nspawn makes, where no systemd does so."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        for name in {"": ("unified", "."), "name=systemd": ("systemd",)}.get(controllers, ()):
            for part in ("payload", "supervisor"):
                top = Path("/sys/fs/cgroup", name, own.lstrip("/"), part)
                for folder, _, _ in os.walk(top, topdown=False):
                    # Whatever runs in one keeps it.
                    with contextlib.suppress(OSError):
                        Path(folder).rmdir()


def _quietly(*words: str) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
