"""The chart under a real kubelet: real containers, volumes, addresses, probes and firewalls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import CHART, ROOT, Cluster, wait_until
from deploy.engine import Engine
from deploy.node import GATEWAY, local_volumes, remove_cgroups, start_node

pytestmark = pytest.mark.deploy

INTERFACE = ROOT / "examples" / "interface"
SERVER = "http://127.0.0.1:5000"
#: The node is no larger than the machine.
VALUES = (
    "services.example.image.repository=job-orchestrator/example",
    "services.example.resources.requests.cpu=100m",
    "server.resources.requests.cpu=100m",
    f"server.dns[0].ipBlock.cidr={GATEWAY}/32",
)
#: Whether a connection to an address and a port comes about.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
except OSError:
    print("closed")
else:
    print("open")
"""


@pytest.fixture(scope="module")
def cluster(
    engine: Engine, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A control plane and a node, with the images and the chart installed."""
    folder = tmp_path_factory.mktemp("cluster")
    images = folder / "images.tar"
    # What holds a pod together does nothing but wait.
    engine.docker("import", "--change", 'ENTRYPOINT ["/bin/sleep", "infinity"]',
                  str(parts / "base-bookworm.tar"), "pause:own")  # fmt: skip
    names = [f"job-orchestrator/{name}:0.1.0" for name in ("server", "example")]
    engine.docker("save", "-o", str(images), *names, "pause:own")
    own = Cluster(folder, parts)
    try:
        own.start()
        start_node(own, images)
        own.restricted_namespace("jobs")
        own.apply(*local_volumes(folder / "volumes", 4))
        helm(own, "install")
        forward(own)
        yield own
    finally:
        own.remove()
        remove_cgroups()


def helm(cluster: Cluster, command: str, *values: str) -> None:
    """Install or upgrade, and wait until all pods are ready."""
    settings = [argument for value in (*VALUES, *values) for argument in ("--set", value)]
    cluster.run("helm", command, "orch", CHART, "-n", "jobs", *settings, "--wait")


def forward(cluster: Cluster) -> None:
    """Have the server on port 5000 of the node, for as long as its pod lives."""
    cluster.spawn("kubectl", "-n", "jobs", "port-forward", "service/orch-server", "5000")
    wait_until(lambda: "pong" in ask(cluster, "/", check=False), "the server is forwarded")


def ask(cluster: Cluster, path: str, *flags: str, check: bool = True) -> str:
    """What the server answers, through `kubectl port-forward`."""
    return cluster.run("curl", "-sS", *flags, SERVER + path, check=check)


def upload(cluster: Cluster, *files: Path) -> int:
    """Upload a job, and give its id."""
    form = [argument for file in files for argument in ("-F", f"file=@{file}")]
    answer = ask(cluster, "/upload", "-F", "user_id=1", "-F", "service=example", *form)
    number: int = json.loads(answer)["id"]
    return number


def job(cluster: Cluster, number: int) -> dict[str, Any]:
    """The record of a job, once that has ended or half a minute has gone by."""
    record: dict[str, Any] = json.loads(ask(cluster, f"/jobs/{number}?wait=30"))
    return record


def wait_for(cluster: Cluster, number: int, status: str) -> None:
    """Wait until a job is in a state."""

    def reached() -> bool:
        return bool(json.loads(ask(cluster, f"/jobs/{number}"))["status"] == status)

    wait_until(reached, status)


def ends(cluster: Cluster, number: int) -> list[str]:
    """The ends of a job, of which there has to be one."""
    events = json.loads(ask(cluster, "/events?limit=500"))["events"]
    final = ("Completed", "Failed", "Invalid", "Killed")
    return [event["to"] for event in events if event["job"] == number and event["to"] in final]


def clients(cluster: Cluster) -> str:
    """What `orch-server client list` prints in the server's pod."""
    return cluster.kubectl("-n", "jobs", "exec", "orch-server-0", "--",
                           "orch-server", "client", "list")  # fmt: skip


def test_a_job_runs(cluster: Cluster) -> None:
    """A job goes from its upload to its result, as the README has it."""
    files = [INTERFACE / name for name in ("run.sh", "contacts.py", "2oob.pdb")]

    number = upload(cluster, *files)

    assert job(cluster, number)["status"] == "Completed"
    result = cluster.folder / "result.zip"
    ask(cluster, f"/download/{number}", "-o", str(result))
    expected = (INTERFACE / "expected" / "summary.txt").read_text()
    assert cluster.run("unzip", "-p", str(result), "summary.txt") == expected


def test_the_pods_are_well(cluster: Cluster) -> None:
    """All probes pass, and the operator's commands work in the server's pod."""
    for pod in cluster.get("pods", "", "jobs"):
        [state] = pod["status"]["containerStatuses"]
        assert state["ready"] and state["restartCount"] == 0
    listed = clients(cluster)
    assert "http://orch-example-0.orch-example:9000" in listed and " up " in listed


def test_a_client_answers_the_server_alone(cluster: Cluster) -> None:
    """Who has no token gets 401, and the probe of the kubelet an answer."""
    address = cluster.get("pod", "orch-example-0", "jobs")["status"]["podIP"]
    code = ("-o", "/dev/null", "-w", "%{http_code}")

    answers = {
        path: cluster.run("curl", "-sS", *code, f"http://{address}:9000{path}")
        for path in ("/load", "/live", "/health")
    }

    assert answers == {"/load": "401", "/live": "401", "/health": "200"}


def test_a_pod_of_a_client_is_deleted(cluster: Cluster, tmp_path: Path) -> None:
    """What runs is handed back, runs again in the next pod, and ends once."""
    script = tmp_path / "run.sh"
    script.write_text('[ "$ORCH_ATTEMPT" != 1 ] || sleep 1000\n')
    number = upload(cluster, script)
    wait_for(cluster, number, "Running")
    before = cluster.get("pod", "orch-example-0", "jobs")["metadata"]["uid"]

    cluster.kubectl("-n", "jobs", "delete", "pod", "orch-example-0")

    record = job(cluster, number)
    assert record["status"] == "Completed"
    assert "handed back: the client stopped" in [step["reason"] for step in record["history"]]
    assert ends(cluster, number) == ["Completed"]
    assert cluster.get("pod", "orch-example-0", "jobs")["metadata"]["uid"] != before


def test_the_pod_of_the_server_is_deleted(cluster: Cluster, tmp_path: Path) -> None:
    """What runs, runs on meanwhile, and its result arrives in the next pod."""
    script, gate = tmp_path / "run.sh", "/data/gate"
    script.write_text(f"until [ -e {gate} ]; do sleep 0.1; done\n")
    number = upload(cluster, script)
    wait_for(cluster, number, "Running")

    cluster.kubectl("-n", "jobs", "delete", "pod", "orch-server-0")
    cluster.kubectl("-n", "jobs", "exec", "orch-example-0", "--", "touch", gate)
    wait_until(lambda: ready(cluster, "orch-server-0"), "the next pod")
    forward(cluster)

    record = job(cluster, number)
    assert (record["status"], record["attempt"]) == ("Completed", 1)
    assert ends(cluster, number) == ["Completed"]


def ready(cluster: Cluster, name: str) -> bool:
    """Whether a pod is there and ready."""
    for pod in cluster.get("pods", "", "jobs"):
        if pod["metadata"]["name"] == name:
            return any(state["ready"] for state in pod["status"].get("containerStatuses", []))
    return False


def test_a_backup_is_restored(cluster: Cluster, tmp_path: Path) -> None:
    """As examples/kubernetes/README.md has it, command by command; a job that ended is there."""
    script = tmp_path / "run.sh"
    script.write_text("echo done\n")
    number = upload(cluster, script)
    assert job(cluster, number)["status"] == "Completed"
    text = (ROOT / "examples/kubernetes/README.md").read_text()
    backup, restore = (
        text.partition(f"**{title}.**")[2].partition("```bash\n")[2].partition("```")[0]
        for title in ("Backup", "Restore")
    )

    for commands in (backup, restore):
        cluster.run("bash", "-euc", f"PATH={cluster.programs}:$PATH; cd {tmp_path}\n{commands}")

    wait_until(lambda: ready(cluster, "orch-server-0"), "the server")
    forward(cluster)
    assert json.loads(ask(cluster, "/health"))["paused"] is True
    cluster.kubectl("-n", "jobs", "exec", "orch-server-0", "--", "orch-server", "resume")
    assert job(cluster, number)["status"] == "Completed"


def test_who_reaches_whom(cluster: Cluster) -> None:
    """The server finds a second client by its name. Only it reaches clients; they reach nobody,
    but where their service names somebody."""
    helm(cluster, "upgrade", "services.example.replicas=2")
    wait_until(lambda: clients(cluster).count(" up ") == 2, "both are up")
    cluster.apply(PORTAL)
    wait_until(lambda: ready(cluster, "portal"), "a portal")
    server, first, second = "orch-server-0", "orch-example-0", "orch-example-1"

    expected = {
        (server, first): True, (server, second): True, (server, "dns"): True,
        ("portal", server): True, ("portal", first): False, ("portal", second): False,
        (first, second): False, (first, server): False, (first, "dns"): False,
        (second, first): False, (second, server): False, (second, "dns"): False,
    }  # fmt: skip
    for (one, other), there in expected.items():
        wait_until(lambda: reaches(cluster, one, other) is there,  # noqa: B023
                   f"{one} to {other}: {there}", 30)  # fmt: skip

    rule = "services.example.egress[0]"
    helm(cluster, "upgrade", "services.example.replicas=2",
         f"{rule}.to[0].ipBlock.cidr={GATEWAY}/32", f"{rule}.ports[0].port=53")  # fmt: skip

    wait_until(lambda: reaches(cluster, first, "dns"), "what the service names is open")
    assert not reaches(cluster, first, second) and not reaches(cluster, first, server)


#: Another pod of the namespace.
PORTAL: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "portal", "namespace": "jobs"},
    "spec": {
        "containers": [
            {
                "name": "portal",
                "image": "job-orchestrator/server:0.1.0",
                "args": ["sleep", "infinity"],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "runAsNonRoot": True,
                    "runAsUser": 10001,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            }
        ]
    },
}


def reaches(cluster: Cluster, one: str, other: str) -> bool:
    """Whether a pod can connect to another one where that listens, or to the DNS."""
    port = {"dns": "53", "orch-server-0": "5000"}.get(other, "9000")
    address = GATEWAY
    if other != "dns":
        address = cluster.get("pod", other, "jobs")["status"]["podIP"]
    said = cluster.kubectl("-n", "jobs", "exec", one, "--",
                           "python3", "-c", CONNECT, address, port)  # fmt: skip
    return said.strip() == "open"
