"""A Kubernetes control plane of the tests' own, in namespaces of its own, and helm for it."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "job-orchestrator"
#: How long anything in the cluster may take (seconds) before the test gives up.
PATIENCE = 180.0

#: What the first process of the namespaces does before it waits.
_BEGIN = "mount --make-rprivate / && ip link set lo up && exec docker-init -- sleep infinity"
#: They end with the tests, whatever ends those.
_SPACES = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork"]
_SPACES += ["--mount-proc", "--kill-child"]

_SERVER = "https://127.0.0.1:6443"
_TOKEN = "made-up-for-these-tests"


class Cluster:
    """etcd, API server, controllers and scheduler: they listen where nobody else can."""

    def __init__(self, folder: Path, parts: Path) -> None:
        self.folder = folder
        self.programs = parts / "bin"
        self._first: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        self.kubeconfig = folder / "kubeconfig"

    # --- programs

    def start(self) -> None:
        """Start all of it, and wait until it answers."""
        self._first = subprocess.Popen(
            [*_SPACES, "sh", "-euc", _BEGIN],
            stdin=subprocess.DEVNULL,
        )
        wait_until(self._is_begun, "the namespaces are there")
        self._write_configuration()
        self.spawn("etcd", f"--data-dir={self.folder}/etcd", "--log-level=error")
        keys = f"{self.folder}/service-accounts.pem"
        self.spawn(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={self.folder}/certificates",
            f"--token-auth-file={self.folder}/tokens",
            "--authorization-mode=RBAC",
            "--allow-privileged=false",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}",
        )
        wait_until(lambda: self.kubectl("get", "--raw=/readyz", check=False) == "ok", "the API")
        for program in ("kube-controller-manager", "kube-scheduler"):
            flags = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false"]
            if program == "kube-controller-manager":
                flags.append(f"--service-account-private-key-file={keys}")
            self.spawn(program, *flags)

    def spawn(self, program: str, *flags: str) -> None:
        """Start a program in the namespaces; it ends with them."""
        with open(self.folder / f"{program}.log", "ab") as log:
            started = subprocess.Popen(
                [*self._enter(), self._path(program), *flags],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._others.append(started)

    def run(self, program: str, *arguments: str | Path, check: bool = True, stdin: str = "") -> str:
        """What a program prints that runs in the namespaces."""
        done = subprocess.run(
            [*self._enter(), self._path(program), *arguments],
            cwd=ROOT,
            env=self._environment(),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE * 2,
        )
        assert not check or done.returncode == 0, f"{program} {arguments}: {done.stdout}"
        return done.stdout

    def kubectl(self, *arguments: str | Path, check: bool = True, stdin: str = "") -> str:
        """What kubectl prints."""
        return self.run("kubectl", *arguments, check=check, stdin=stdin)

    def stop(self) -> None:
        """End all of it; nothing is mounted or runs afterwards."""
        first, self._first = self._first, None
        if first is not None:
            first.kill()
            for process in (first, *self._others):
                process.wait(PATIENCE)
            self._others.clear()

    def remove(self) -> None:
        """Stop it, and remove what it has stored."""
        self.stop()
        shutil.rmtree(self.folder)

    # --- objects

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create objects, or change them."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str = "", namespace: str = "default") -> Any:
        """An object, or without a name all of the kind."""
        found = json.loads(self.kubectl("get", kind, *name.split(), "-n", namespace, "-o=json"))
        return found if name else found["items"]

    def restricted_namespace(self, name: str) -> None:
        """A namespace in which Pod Security "restricted" is enforced."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = {"apiVersion": "v1", "kind": "Namespace"}
        self.apply({**namespace, "metadata": {"name": name, "labels": labels}})
        wait_until(
            lambda: any(a["metadata"]["name"] == "default" for a in self.get("sa", "", name)),
            "the service account that pods need",
        )

    # --- what is below

    def _path(self, program: str) -> str:
        own = self.programs / program
        return str(own) if own.exists() else program

    def _environment(self) -> dict[str, str]:
        # What helm and kubectl keep in the home folder is the tests' own.
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder)}

    def _enter(self) -> list[str]:
        [target] = self._children()
        return ["nsenter", "--mount", "--net", "--pid", "--target", target, "--wd=.", "--"]

    def _children(self) -> list[str]:
        assert self._first is not None and self._first.poll() is None
        pid = self._first.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def _is_begun(self) -> bool:
        return any(
            Path(f"/proc/{child}/comm").read_text().strip() == "docker-init"
            for child in self._children()
        )

    def _write_configuration(self) -> None:
        (self.folder / "tokens").write_text(f'{_TOKEN},admin,1,"system:masters"\n')
        key = str(self.folder / "service-accounts.pem")
        subprocess.run(["openssl", "genrsa", "-out", key], check=True, capture_output=True)
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "own",
                            "cluster": {"server": _SERVER, "insecure-skip-tls-verify": True},
                        }
                    ],
                    "users": [{"name": "admin", "user": {"token": _TOKEN}}],
                    "contexts": [{"name": "own", "context": {"cluster": "own", "user": "admin"}}],
                    "current-context": "own",
                }
            )
        )
        self.kubeconfig.chmod(0o600)


def wait_until(holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait for something that nobody tells of."""
    until = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < until, f"in vain waited for: {what}"
        time.sleep(0.1)
