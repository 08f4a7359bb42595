"""The chart on a real API server of 1.34, in a namespace that enforces Pod Security "restricted".

The node is one that kwok plays: its pods are Running and Ready, and run nothing.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cluster import CHART, PATIENCE, ROOT, Cluster, wait_until

pytestmark = pytest.mark.deploy

RENDERED = ROOT / "tests" / "deploy" / "rendered"
WENMR = ROOT / "examples" / "kubernetes" / "values-wenmr.yaml"
#: One service, as short as it can be said.
EXAMPLE = "services.example.image.repository=job-orchestrator/example"
WAIT = ("--wait", f"--timeout={PATIENCE:.0f}s")
#: What each rendered file is made from.
CASES: dict[str, list[str | Path]] = {
    "bare": [],
    "example": ["--set", EXAMPLE],
    "wenmr": ["--values", WENMR],
    "all": ["--values", RENDERED / "all-values.yaml"],
}


@pytest.fixture(scope="module")
def cluster(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane, a node that kwok plays, and volumes."""
    own = Cluster(tmp_path_factory.mktemp("cluster"), parts)
    try:
        own.start()
        # It renews a lease for the node, or that would not be ready for long.
        flags = ("--manage-all-nodes=true", "--node-lease-duration-seconds=40")
        own.spawn("kwok", f"--kubeconfig={own.kubeconfig}", *flags)
        room = {"cpu": "64", "memory": "256Gi", "pods": "110"}
        status = {"allocatable": room, "capacity": room}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}
        own.apply({**node, "status": status}, *volumes(30))
        yield own
    finally:
        own.remove()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, which is empty again afterwards."""
    name = request.node.originalname.replace("_", "-").removeprefix("test-")[:50].strip("-")
    cluster.restricted_namespace(name)
    yield name
    cluster.kubectl("delete", "namespace", name)


def volumes(count: int) -> list[dict[str, Any]]:
    """The default storage class, and volumes of it that wait for a claim."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    kind = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "static", "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    return [kind] + [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{number}"},
            "spec": {
                "storageClassName": "static",
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": f"/nowhere/{number}"},
            },
        }
        for number in range(count)
    ]


def helm(cluster: Cluster, command: str, namespace: str, *arguments: str | Path) -> str:
    """Install or upgrade the release `orch`, and wait until all of it is ready."""
    return cluster.run("helm", command, "orch", CHART, "-n", namespace, *WAIT, *arguments)


def settings(cluster: Cluster, namespace: str) -> dict[str, str]:
    """The environment of the server's pod, as it is now."""
    pod = cluster.get("pod", "orch-server-0", namespace)
    return {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}


def pods(cluster: Cluster, namespace: str) -> set[str]:
    """The names of the pods that are Running and are not about to go."""
    return {
        pod["metadata"]["name"]
        for pod in cluster.get("pods", "", namespace)
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    }


def claims(cluster: Cluster, namespace: str) -> set[str]:
    """The names of the claims for volumes."""
    return {claim["metadata"]["name"] for claim in cluster.get("pvc", "", namespace)}


def token(cluster: Cluster, namespace: str) -> bytes:
    """What server and clients share."""
    secret = cluster.get("secret", "orch-client-token", namespace)
    return base64.b64decode(secret["data"]["token"])


def rendered(cluster: Cluster, *arguments: str | Path) -> str:
    """The manifests of the release `orch`, with a token that is always the same."""
    text = cluster.run("helm", "template", "orch", CHART, "-n", "jobs", *arguments)
    objects = [one for one in yaml.safe_load_all(text) if one]
    for one in objects:
        if one["kind"] == "Secret":
            assert len(base64.b64decode(one["data"]["token"])) == 48
            one["data"]["token"] = base64.b64encode(b"x" * 48).decode()
    return yaml.safe_dump_all(objects, sort_keys=False, width=1000)


def test_the_chart_is_clean(cluster: Cluster) -> None:
    """`helm lint` has nothing to say against it, with each set of values."""
    for arguments in CASES.values():
        said = cluster.run("helm", "lint", "--strict", CHART, *arguments)

        assert "[WARNING]" not in said and "[ERROR]" not in said


@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_what_is_kept(cluster: Cluster, case: str) -> None:
    """tests/deploy/rendered has what the chart makes. Where it has not, it is written anew: look
    at what has changed, and keep it."""
    now = rendered(cluster, *CASES[case])
    kept = RENDERED / f"{case}.yaml"
    before = kept.read_text() if kept.exists() else ""
    kept.write_text(now)

    assert now == before


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_every_field(cluster: Cluster, namespace: str, case: str) -> None:
    """Each set of values gives objects that the API server knows to the last field."""
    manifests = rendered(cluster, *CASES[case]).replace("namespace: jobs", "namespace: default")

    said = cluster.kubectl(
        "apply", "-n", namespace, "--dry-run=server", "--validate=strict", "-f", "-",
        stdin=manifests,
    )  # fmt: skip

    assert "would violate PodSecurity" not in said
    assert said.count("(server dry run)") == len(list(yaml.safe_load_all(manifests)))


def test_it_installs(cluster: Cluster, namespace: str) -> None:
    """All pods run where "restricted" is enforced, and they have nothing of the API's."""
    refused = cluster.kubectl("run", "other", "--image=any", "-n", namespace, check=False)
    assert 'violates PodSecurity "restricted' in refused

    notes = helm(cluster, "install", namespace, "--set", EXAMPLE)

    assert f"kubectl -n {namespace} exec orch-server-0 -- orch-server client list" in notes
    assert pods(cluster, namespace) == {"orch-server-0", "orch-example-0"}
    for pod in cluster.get("pods", "", namespace):
        mounted = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert mounted == ["/data", "/run/secrets"]
    assert settings(cluster, namespace)["SERVICE_EXAMPLE_URL"] == (
        "http://orch-example-0.orch-example:9000"
    )


def test_it_scales(cluster: Cluster, namespace: str) -> None:
    """One service goes from 1 client to 3 and back, and the settings of the server follow."""
    urls = [f"http://orch-example-{number}.orch-example:9000" for number in range(3)]
    helm(cluster, "install", namespace, "--set", EXAMPLE)
    first = cluster.get("pod", "orch-server-0", namespace)["metadata"]["uid"]

    helm(cluster, "upgrade", namespace, "--set", EXAMPLE, "--set", "services.example.replicas=3")

    assert settings(cluster, namespace)["SERVICE_EXAMPLE_URL"] == ",".join(urls)
    assert cluster.get("pod", "orch-server-0", namespace)["metadata"]["uid"] != first
    assert pods(cluster, namespace) == {
        "orch-server-0", "orch-example-0", "orch-example-1", "orch-example-2",
    }  # fmt: skip
    wait_until(
        lambda: cluster.get("pdb", "orch-example", namespace)["status"]["expectedPods"] == 3,
        "the disruption budget counts all three",
    )
    budget = cluster.get("pdb", "orch-example", namespace)["status"]
    assert (budget["desiredHealthy"], budget["disruptionsAllowed"]) == (2, 1)

    helm(cluster, "upgrade", namespace, "--set", EXAMPLE)

    assert settings(cluster, namespace)["SERVICE_EXAMPLE_URL"] == urls[0]
    wait_until(
        lambda: pods(cluster, namespace) == {"orch-server-0", "orch-example-0"}, "two have gone"
    )
    # What the server has not fetched from them is still there.
    assert {"data-orch-example-1", "data-orch-example-2"} < claims(cluster, namespace)


def test_it_upgrades_and_rolls_back(cluster: Cluster, namespace: str) -> None:
    """An upgrade replaces the pods, a roll-back brings the former ones; the token stays."""
    helm(cluster, "install", namespace, "--set", EXAMPLE, "--set", "server.settings.maxAge=1d")
    secret = token(cluster, namespace)
    assert len(secret) == 48

    helm(
        cluster, "upgrade", namespace, "--set", EXAMPLE,
        "--set", "server.settings.maxAge=2d", "--set", "server.image.tag=0.2.0",
        "--set", "services.example.queue.runsPerUser=9",
    )  # fmt: skip

    now = settings(cluster, namespace)
    assert (now["MAX_AGE"], now["SERVICE_EXAMPLE_RUNS_PER_USER"]) == ("2d", "9")
    assert images(cluster, namespace)["orch-server-0"] == "job-orchestrator/server:0.2.0"
    assert token(cluster, namespace) == secret

    cluster.run("helm", "rollback", "orch", "1", "-n", namespace, *WAIT)

    now = settings(cluster, namespace)
    assert now["MAX_AGE"] == "1d"
    assert "SERVICE_EXAMPLE_RUNS_PER_USER" not in now
    assert images(cluster, namespace)["orch-server-0"].endswith(":0.1.0")
    assert token(cluster, namespace) == secret


def images(cluster: Cluster, namespace: str) -> dict[str, str]:
    """The image of each pod."""
    return {
        pod["metadata"]["name"]: pod["spec"]["containers"][0]["image"]
        for pod in cluster.get("pods", "", namespace)
    }


def test_a_new_installation_finds_its_volumes(cluster: Cluster, namespace: str) -> None:
    """`helm uninstall` leaves the volumes, and the next installation takes them."""
    helm(cluster, "install", namespace, "--set", EXAMPLE)
    before = cluster.get("pvc", "data-orch-server-0", namespace)["metadata"]["uid"]
    cluster.run("helm", "uninstall", "orch", "-n", namespace, *WAIT)
    assert cluster.get("statefulsets", "", namespace) == []

    helm(cluster, "install", namespace, "--set", EXAMPLE)

    assert cluster.get("pvc", "data-orch-server-0", namespace)["metadata"]["uid"] == before


def test_services_come_and_go(cluster: Cluster, namespace: str) -> None:
    """A service that is taken away leaves only its volumes; one without a client stays known."""
    two = ("--set", EXAMPLE, "--set", "services.md-prep.image.repository=md")
    helm(cluster, "install", namespace, *two)
    assert "orch-md-prep-0" in pods(cluster, namespace)
    url = "http://orch-md-prep-0.orch-md-prep:9000"
    assert settings(cluster, namespace)["SERVICE_MD_PREP_URL"] == url

    helm(cluster, "upgrade", namespace, *two, "--set", "services.md-prep.replicas=0")

    assert settings(cluster, namespace)["SERVICE_MD_PREP_URL"] == url
    wait_until(lambda: "orch-md-prep-0" not in pods(cluster, namespace), "no client any more")

    helm(cluster, "upgrade", namespace, *two, "--set", "services.md-prep=null")

    assert "SERVICE_MD_PREP_URL" not in settings(cluster, namespace)
    for kind in ("statefulset", "service", "pdb", "networkpolicy"):
        names = {one["metadata"]["name"] for one in cluster.get(kind, "", namespace)}
        assert "orch-example" in names and "orch-md-prep" not in names
    assert "data-orch-md-prep-0" in claims(cluster, namespace)


def test_a_volume_grows(cluster: Cluster, namespace: str) -> None:
    """As the README has it: the StatefulSet is made anew around its pods, which run on."""
    helm(cluster, "install", namespace, "--set", EXAMPLE)
    grown = ("--set", EXAMPLE, "--set", "server.storage.size=40Gi")
    refused = cluster.run("helm", "upgrade", "orch", CHART, "-n", namespace, *grown, check=False)
    assert "updates to statefulset spec" in refused
    before = cluster.get("pod", "orch-server-0", namespace)["metadata"]["uid"]

    cluster.kubectl("delete", "statefulset", "orch-server", "--cascade=orphan", "-n", namespace)
    helm(cluster, "upgrade", namespace, *grown)

    [template] = cluster.get("statefulset", "orch-server", namespace)["spec"][
        "volumeClaimTemplates"
    ]
    assert template["spec"]["resources"]["requests"]["storage"] == "40Gi"
    assert cluster.get("pod", "orch-server-0", namespace)["metadata"]["uid"] == before


def test_another_token(cluster: Cluster, namespace: str) -> None:
    """As the README has it: the Secret is deleted, made anew, and all pods start again."""
    helm(cluster, "install", namespace, "--set", EXAMPLE)
    before = token(cluster, namespace)
    pods_before = {pod["metadata"]["uid"] for pod in cluster.get("pods", "", namespace)}

    cluster.kubectl("delete", "secret", "orch-client-token", "-n", namespace)
    helm(cluster, "upgrade", namespace, "--set", EXAMPLE)
    cluster.kubectl(
        "rollout", "restart", "statefulset", "-l", "app.kubernetes.io/instance=orch",
        "-n", namespace,
    )  # fmt: skip

    assert token(cluster, namespace) != before

    def all_are_new() -> bool:
        now = {pod["metadata"]["uid"] for pod in cluster.get("pods", "", namespace)}
        return len(now) == 2 and not now & pods_before

    wait_until(all_are_new, "all pods are new")


def test_a_secret_of_ones_own(cluster: Cluster, namespace: str) -> None:
    """An existing Secret is mounted, and none is made."""
    cluster.kubectl(
        "create", "secret", "generic", "ours", "--from-literal=token=abc", "-n", namespace
    )

    helm(
        cluster, "install", namespace, "--set", EXAMPLE,
        "--set", "clientToken.existingSecret=ours",
    )  # fmt: skip

    for pod in cluster.get("pods", "", namespace):
        [volume] = [one for one in pod["spec"]["volumes"] if "secret" in one]
        assert volume["secret"]["secretName"] == "ours"
    kinds = {one["type"] for one in cluster.get("secrets", "", namespace)}
    assert kinds == {"Opaque", "helm.sh/release.v1"}
    names = {one["metadata"]["name"] for one in cluster.get("secrets", "", namespace)}
    assert "orch-client-token" not in names


WRONG = [
    ("services.example.replicas=many", "/services/example/replicas"),
    ("services.example.replicas=-1", "/services/example/replicas"),
    ("services.example.repliccas=2", "'repliccas' not allowed"),
    ("services.example.settings.slots=0", "/services/example/settings/slots"),
    ("services.example.settings.onStop=leave", "/services/example/settings/onStop"),
    ("services.example.settings.stopGrace=10m", "/services/example/settings/stopGrace"),
    ("services.example.settings.jobTimeout=never", "/services/example/settings/jobTimeout"),
    ("services.example.queue.retryExitCodes={0}", "/services/example/queue/retryExitCodes/0"),
    ("services.example.env.SLOTS=4", "invalid propertyName 'SLOTS'"),
    ("services.example.storage.size=big", "/services/example/storage/size"),
    ("services.server.image.repository=any", "invalid propertyName 'server'"),
    ("services.Example.image.repository=any", "invalid propertyName 'Example'"),
    ("services.a-upload.image.repository=any", "invalid propertyName 'a-upload'"),
    ("services.other.replicas=1", "services.other.image.repository"),
    (f"services.{'a' * 48}.image.repository=any", f"services.{'a' * 48}"),
    ("server.settings.maxAge=two", "/server/settings/maxAge"),
    ("server.settings.maxUploadSize=400Mi", "/server/settings/maxUploadSize"),
    ("server.replicas=2", "'replicas' not allowed"),
    ("sevices.example.replicas=2", "'sevices' not allowed"),
]


@pytest.mark.parametrize(("value", "named"), WRONG)
def test_a_wrong_value_is_refused_by_name(cluster: Cluster, value: str, named: str) -> None:
    """Nothing is installed, and the message says which value it is."""
    said = cluster.run(
        "helm", "install", "wrong", CHART, "--set", EXAMPLE, "--set", value, check=False
    )

    assert said.startswith("Error") and named in said
    assert json.loads(cluster.run("helm", "list", "--all", "-A", "-o=json", "-f=wrong")) == []
