"""The Helm chart, as far as that goes without helm and without a cluster.

tests/deploy/rendered has the manifests that the chart makes; tests/deploy sees to it that they are.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from orchestrator_client.config import Config as ClientConfig
from orchestrator_server.config import Config as ServerConfig
from orchestrator_shared import settings

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "deploy/helm/job-orchestrator"
RENDERED: Final = ROOT / "tests/deploy/rendered"
KUBERNETES: Final = "1.34"

Object = dict[str, Any]


def load(path: Path) -> Object:
    """A file of YAML with one document."""
    found: Object = yaml.safe_load(path.read_text())
    return found


SCHEMA: Final = load(CHART / "values.schema.json")
DEFINITIONS: Final[dict[str, Object]] = SCHEMA["definitions"]
VALUES: Final = load(CHART / "values.yaml")
OTHER_VALUES: Final = {
    "wenmr": load(ROOT / "examples/kubernetes/values-wenmr.yaml"),
    "all": load(RENDERED / "all-values.yaml"),
}
MANIFESTS: Final[dict[str, list[Object]]] = {
    case: list(yaml.safe_load_all((RENDERED / f"{case}.yaml").read_text()))
    for case in ("bare", "example", "wenmr", "all")
}
EVERY: Final = [
    pytest.param(one, id=f"{case}-{one['kind']}-{one['metadata']['name']}")
    for case, objects in MANIFESTS.items()
    for one in objects
]
EVERY_SET: Final = [case for case in EVERY if "-StatefulSet-" in str(case.id)]


def documented(program: str) -> set[str]:
    """The settings of a program; tests/unit/test_docs.py sees to it that they are all."""
    text = (ROOT / "docs/configuration.md").read_text()
    section = text.partition(f"\n## The {program}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([A-Z_<>]+)` \|", section, re.M))


def variables(definition: str) -> set[str]:
    """The settings that the schema has below a value, as the programs name them."""
    return {
        re.sub(r"([A-Z])", r"_\1", name).upper() for name in DEFINITIONS[definition]["properties"]
    }


def environment(stateful_set: Object) -> dict[str, str]:
    """What the container of a StatefulSet gets, as far as it is text."""
    [container] = stateful_set["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def of_kind(case: str, kind: str) -> dict[str, Object]:
    """The objects of a kind by their names."""
    return {one["metadata"]["name"]: one for one in MANIFESTS[case] if one["kind"] == kind}


def is_server(stateful_set: Object) -> bool:
    """Whether it is the server's."""
    return bool(stateful_set["metadata"]["name"] == "orch-server")


# --- chart and values


def test_the_versions_agree() -> None:
    """The chart has the version of each package, and so have the images that it names."""
    packages = {
        tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]["version"]
        for name in ("shared", "orchestrator_server", "orchestrator_client")
    }
    chart = load(CHART / "Chart.yaml")

    assert packages == {chart["version"]} == {chart["appVersion"]}
    for one in of_kind("example", "StatefulSet").values():
        [container] = one["spec"]["template"]["spec"]["containers"]
        assert container["image"].rpartition(":")[2] == chart["version"]


@pytest.mark.parametrize("case", [None, *OTHER_VALUES])
def test_the_values_fit_the_schema(case: str | None) -> None:
    """The chart's own, those of the example, and those of the tests."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)

    jsonschema.validate({**VALUES, **(OTHER_VALUES[case] if case else {})}, SCHEMA)


def closed(schema: Any, path: str = "") -> Iterator[str]:
    """Where a schema says which properties there are, and leaves room for others."""
    if isinstance(schema, Mapping):
        if "properties" in schema and schema.get("additionalProperties") is not False:
            yield path
        for key, value in schema.items():
            yield from closed(value, f"{path}/{key}")


def test_no_value_is_passed_over() -> None:
    """A value that is not known is refused, but in what Kubernetes knows itself."""
    assert set(closed(SCHEMA)) == {
        "/definitions/volumes/items",
        "/definitions/volumeMounts/items",
    }


@pytest.mark.parametrize(
    ("definition", "program", "left_out"),
    [
        ("serverSettings", "server", {"HOST", "PORT", "DB_PATH", "DATA_PATH", "CLIENT_TOKEN_FILE"}),
        (
            "clientSettings",
            "client",
            # LEGACY_WIRE: here the server is ours.
            {"HOST", "PORT", "DB_PATH", "DATA_PATH", "CLIENT_TOKEN_FILE", "SERVICE", "LEGACY_WIRE"},
        ),
    ],
)
def test_every_setting_is_a_value(definition: str, program: str, left_out: set[str]) -> None:
    """All settings of both programs can be said, but those that image and chart have to say."""
    known = {name for name in documented(program) if "<NAME>" not in name}

    assert left_out < known
    assert variables(definition) == known - left_out


def test_every_setting_of_a_service_is_a_value() -> None:
    """But for its URLs, which follow from its replicas."""
    known = {
        name.removeprefix("SERVICE_<NAME>_") for name in documented("server") if "<NAME>" in name
    }

    assert variables("queue") == {name for name in known if not name.endswith("URL")}


def test_every_value_is_explained() -> None:
    """values.yaml names each, as a value or as a comment."""
    text = (CHART / "values.yaml").read_text()
    parts = ("service", "serverSettings", "clientSettings", "queue", "image", "storage")
    names = {name for part in parts for name in DEFINITIONS[part]["properties"]}
    names |= set(SCHEMA["properties"]["server"]["properties"]) | set(SCHEMA["properties"])

    named = set(re.findall(r"^ *(?:# )?(\w+):", text, re.M))

    assert names - {"global"} <= named


def test_every_setting_is_tried() -> None:
    """The values of the tests have all that there are."""
    tried = OTHER_VALUES["all"]
    service = tried["services"]["md-prep"]

    assert set(tried["server"]["settings"]) == set(DEFINITIONS["serverSettings"]["properties"])
    assert set(service["settings"]) == set(DEFINITIONS["clientSettings"]["properties"])
    assert set(service["queue"]) == set(DEFINITIONS["queue"]["properties"])
    assert set(service) == set(DEFINITIONS["service"]["properties"])
    assert set(tried["server"]) == set(SCHEMA["properties"]["server"]["properties"])


def test_a_setting_has_one_place() -> None:
    """No setting of the client can be said as a variable of `env` too."""
    refused = DEFINITIONS["env"]["propertyNames"]["not"]["enum"]

    assert set(refused) == documented("client")


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        ("time", text)
        for text in ("10", "0.5", "15s", "10 m", "12H", "7d", "", "d", "1w", "-1", "1e3")
    ]
    + [("bytes", text) for text in ("10", "400MiB", "1.5 G", "1gb", "7b", "1Gi", "", "-1", "1P")],
)
def test_the_schema_knows_units(definition: str, text: str) -> None:
    """It takes a time or a size where the programs do."""
    parse = settings.seconds if definition == "time" else settings.size
    try:
        parse(text)
    except ValueError:
        taken = False
    else:
        taken = True

    assert bool(re.search(DEFINITIONS[definition]["pattern"], text)) is taken


# --- what it makes


@pytest.mark.parametrize("one", EVERY)
def test_the_manifests_are_valid(one: Object) -> None:
    """Each field is one of Kubernetes', with a value that it takes."""
    kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("one", EVERY_SET)
def test_the_pods_are_restricted(one: Object) -> None:
    """They keep the rules of Pod Security "restricted", write nowhere but to their volume, and
    hold nothing of the cluster's."""
    pod = one["spec"]["template"]["spec"]
    [container] = pod["containers"]

    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert [context[name] for name in ("runAsUser", "runAsGroup", "fsGroup")] == [10001] * 3
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(pod)
    assert not any("hostPort" in port for port in container["ports"])
    assert all("hostPath" not in volume for volume in pod["volumes"])
    assert pod["automountServiceAccountToken"] is False
    # Else a Service named service-x gives the server a variable SERVICE_X_PORT, and more.
    assert pod["enableServiceLinks"] is False
    writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["/data"]


@pytest.mark.parametrize("case", MANIFESTS)
def test_the_programs_take_their_settings(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server reads what is rendered and knows each client; each client knows its service."""
    token = tmp_path / "token"
    token.write_text("abc")
    sets = of_kind(case, "StatefulSet")
    server = environment(sets.pop("orch-server"))

    def use(variables: Mapping[str, str]) -> None:
        for name in list(os.environ):
            monkeypatch.delenv(name)
        assert variables["CLIENT_TOKEN_FILE"] == "/run/secrets/client-token"
        for name, value in {**variables, "CLIENT_TOKEN_FILE": str(token)}.items():
            monkeypatch.setenv(name, value)

    use(server)
    config = ServerConfig.from_env()
    assert config.ignored == ()
    assert {f"orch-{name.replace('_', '-')}" for name in config.services} == set(sets)
    for name, one in sets.items():
        use(environment(one))
        client = ClientConfig.from_env()
        assert client.service is not None
        urls = [address.base for address in config.services[client.service].clients]
        assert urls == [f"http://{name}-{n}.{name}:9000" for n in range(one["spec"]["replicas"])]
        grace = one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert client.on_stop != "leave"
        waits = client.stop_grace if client.on_stop == "finish" else 0
        assert grace == waits + 15


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels, as the chart uses it, selects."""
    return all(labels.get(name) == value for name, value in selector["matchLabels"].items())


@pytest.mark.parametrize("case", MANIFESTS)
def test_the_network_is_closed(case: str) -> None:
    """Only the server reaches clients, on their port; they reach what their service names."""
    pods = {
        name: one["spec"]["template"]["metadata"]["labels"]
        for name, one in of_kind(case, "StatefulSet").items()
    }
    policies = of_kind(case, "NetworkPolicy")
    egress = {
        f"orch-{name}": service.get("egress")
        for name, service in OTHER_VALUES.get(case, {}).get("services", {}).items()
    }

    assert set(policies) == set(pods)
    for name, policy in policies.items():
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert [n for n, labels in pods.items() if matches(spec["podSelector"], labels)] == [name]
        [ingress] = spec["ingress"]
        if name == "orch-server":
            assert ingress["ports"] == [{"port": 5000}]
            to_clients, to_dns = spec["egress"]
            [peer] = to_clients["to"]
            reached = {n for n, labels in pods.items() if matches(peer["podSelector"], labels)}
            assert reached == set(pods) - {name} and to_clients["ports"] == [{"port": 9000}]
            assert {port["port"] for port in to_dns["ports"]} == {53}
        else:
            [peer] = ingress["from"]
            assert set(peer) == {"podSelector"} and ingress["ports"] == [{"port": 9000}]
            reached = {n for n, labels in pods.items() if matches(peer["podSelector"], labels)}
            assert reached == {"orch-server"}
            assert spec.get("egress") == egress.get(name)


@pytest.mark.parametrize("one", EVERY_SET)
def test_the_pods_are_probed(one: Object) -> None:
    """The server by HTTP; a client, which answers nobody but the server, by its own program."""
    [container] = one["spec"]["template"]["spec"]["containers"]
    live: Object = {"exec": {"command": ["orch-client", "probe", "live"]}}
    if is_server(one):
        live = {"httpGet": {"path": "/live", "port": "http"}}

    asked = {
        name: container[name].get("exec") or container[name].get("httpGet")
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }

    [expected] = live.values()
    assert asked["startupProbe"] == asked["livenessProbe"] == expected
    assert asked["readinessProbe"] == {"path": "/health", "port": "http"}


@pytest.mark.parametrize("case", MANIFESTS)
def test_disruptions_are_bounded(case: str) -> None:
    """Of each service one client at a time is taken away; no budget stops a drain for ever."""
    services = set(of_kind(case, "StatefulSet")) - {"orch-server"}

    budgets = of_kind(case, "PodDisruptionBudget")

    assert set(budgets) == services
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets.values())


@pytest.mark.parametrize("one", EVERY_SET)
def test_chart_and_image_agree(one: Object) -> None:
    """On user, port and volume."""
    text = (ROOT / "deploy/Dockerfile").read_text()
    [container] = one["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]

    stage = text.partition(f"AS {'server' if is_server(one) else 'client'}\n")[2]
    assert f"EXPOSE {port['containerPort']}\n" in stage.partition("\nFROM ")[0]
    assert "--uid 10001 --gid 10001" in text and "VOLUME /data\n" in text
