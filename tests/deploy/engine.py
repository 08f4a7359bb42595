"""A Docker engine of the tests' own, and a base image for what it builds."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp
from aiohappyeyeballs import AddrInfoType

ROOT = Path(__file__).resolve().parents[2]
#: Debian's; another one on PATH may lack what it needs for a build.
DOCKER = "/usr/bin/docker"
BASE = "debian-with-python:bookworm"
#: How long the engine may take to begin or to stop (seconds) before the test gives up.
PATIENCE = 60.0

#: The first process of the engine's own namespaces; with it all of them end.
_BEGIN = """
# An engine of the machine's own is not to be found there.
[ ! -d /run/containerd ] || mount -t tmpfs tmpfs /run/containerd
ip link set lo up
exec docker-init -- dockerd "$@"
"""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Engine:
    """dockerd in namespaces of its own: no container, mount or network of it is left behind."""

    def __init__(self, folder: Path, parts: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "engine.log"
        plugins = folder / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(parts / "bin" / "docker-compose")
        #: What `docker` and `make` need to use it.
        self.environment: Mapping[str, str] = {
            **os.environ,
            "DOCKER": DOCKER,
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "DOCKER_CONFIG": str(folder / "config"),
        }

    def start(self, *, builds: bool = False) -> None:
        """Start it in a network of its own; or without one, for builds in the machine's."""
        network = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
        flags = [
            "--storage-driver=overlay2",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--host=unix://{self.folder}/docker.sock",
            *(network if builds else ()),
        ]
        spaces = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        if not builds:
            spaces.append("--net")
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                # It ends with the tests, even if these are killed.
                [
                    "setpriv",
                    "--pdeathsig=KILL",
                    "unshare",
                    *spaces,
                    "sh",
                    "-euc",
                    _BEGIN,
                    "sh",
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, and every container with it; its images and volumes stay."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.kill(self._first(process), signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """Stop it, and remove its images and volumes."""
        self.stop()
        shutil.rmtree(self.folder)

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What a docker command prints."""
        return self.run(DOCKER, *arguments, check=check)

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """What a command prints that uses the engine; it runs in the root of the checkout."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def in_network(self, *command: str, check: bool = True) -> str:
        """What a command prints that runs where the engine publishes ports."""
        assert self._process is not None
        first = str(self._first(self._process))
        return self.run("nsenter", "--net", "--target", first, "--", *command, check=check)

    def session(self) -> aiohttp.ClientSession:
        """A connection pool for what the engine publishes."""

        def open_socket(address: AddrInfoType) -> socket.socket:
            with self._inside():
                return socket.socket(*address[:3])

        # Whoever it talks to may be another container by the next request.
        connector = aiohttp.TCPConnector(socket_factory=open_socket, force_close=True)
        return aiohttp.ClientSession(connector=connector)

    def listen(self) -> socket.socket:
        """Somebody on the machine who listens at every address that it has."""
        with self._inside():
            return socket.create_server(("", 0))

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """This thread is in the network where the engine publishes ports."""
        assert self._process is not None
        there = f"/proc/{self._first(self._process)}/ns/net"
        with open("/proc/thread-self/ns/net") as own, open(there) as other:
            assert _libc.setns(other.fileno(), _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert _libc.setns(own.fileno(), _CLONE_NEWNET) == 0

    @staticmethod
    def _first(process: subprocess.Popen[bytes]) -> int:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return int(children.split()[0])

    def _answers(self) -> bool:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            return probe.connect_ex(f"{self.folder}/docker.sock") == 0 and bool(
                self.docker("version", "--format", "{{.Server.Version}}", check=False)
            )


def load_base(engine: Engine, parts: Path) -> None:
    """Have the base image, which is made of Debian's packages once."""
    stored = parts / "base-bookworm.tar"
    if not stored.exists():
        root, new = parts / "base-bookworm", stored.with_suffix(".new")
        shutil.rmtree(root, ignore_errors=True)
        # The mirror is the machine's own.
        listed = engine.run("apt-get", "indextargets", "--format", "$(REPO_URI)",
                            "Codename: bookworm", "Component: main",
                            "Created-By: Packages")  # fmt: skip
        packages = "python3,python3-venv,ca-certificates"
        engine.run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm",
                   str(root), *listed.split()[:1])  # fmt: skip
        engine.run("chroot", str(root), "apt-get", "clean")
        engine.run("tar", "-C", str(root), "-c", "-f", str(new), ".")
        shutil.rmtree(root)
        new.rename(stored)
    engine.docker("import", str(stored), BASE)


def build_settings(folder: Path) -> list[str]:
    """Arguments of `make images` that let a build reach what this machine reaches."""
    known = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings = dict(line.split("=", 1) for line in known.stdout.splitlines())
    lines = ["[global]"]
    for name, value in settings.items():
        key = name.rpartition(".")[2]
        # Its paths mean nothing in a container.
        if key not in ("cert", "find-links", "cache-dir"):
            lines.append(f"{key} = {value[1:-1]}")
    configuration = folder / "pip.conf"
    configuration.write_text("\n".join(lines) + "\n")
    trusted = ssl.get_default_verify_paths().cafile
    return [
        f"BASE={BASE}",
        f"PIP_CONF={configuration}",
        *([f"CA_BUNDLE={trusted}"] if trusted else []),
        "BUILD_FLAGS=--network host",
    ]
