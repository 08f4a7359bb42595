"""A node of a Cluster that runs containers, beside each other as their NetworkPolicies say.

kubelet, containerd and the bridge plugin are what they are elsewhere. CoreDNS, and kube-router for
the policies, run beside them instead of in pods.
"""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from deploy.cluster import Cluster, wait_until

NAME = "node"
#: What the pods' bridge has as its own address; the DNS answers there.
GATEWAY = "10.88.0.1"
_ADDRESS = "192.0.2.1"
_PODS = "10.88.0.0/16"
#: Below it are the containers, in each hierarchy of the machine.
_CGROUP = f"/orchestrator-tests-{os.getpid()}"

#: Folders of the machine of which the programs on the node have their own.
_OWN = (
    "/run",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/log",
    "/usr/libexec/kubernetes",
    "/etc/cni",
)

_CONTAINERD = """
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:own"
  # The kernel may let nobody here be killed later than others.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
"""

_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": _PODS, "gateway": GATEWAY}]],
            },
        }
    ],
}

_KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": _CGROUP,
    "enforceNodeAllocatable": [],
    "clusterDNS": [GATEWAY],
    "clusterDomain": "cluster.local",
    "failSwapOn": False,
    "registerNode": True,
    "address": "0.0.0.0",  # noqa: S104 - in a network of its own
    # The disk is the machine's, and others fill it.
    "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%"},
    "imageGCHighThresholdPercent": 100,
}

_CORE_DNS = """
.:53 {{
    errors
    kubernetes cluster.local {{
        kubeconfig {kubeconfig}
    }}
}}
"""


def start_node(cluster: Cluster, images: Path) -> None:
    """Start the node, with the images of an archive of `docker save`; wait until it is ready."""
    for place in _OWN:
        cluster.run("mkdir", "-p", place)
        cluster.run("mount", "-t", "tmpfs", "tmpfs", place)
    # Layers and volumes go to the disk.
    for place in ("/var/lib/containerd", "/var/lib/kubelet"):
        own = cluster.folder / Path(place).name
        own.mkdir()
        cluster.run("mount", "--bind", str(own), place)
    cluster.run("ip", "address", "add", f"{_ADDRESS}/32", "dev", "lo")
    cluster.run("mkdir", "-p", "/etc/cni/net.d", "/var/log/pods", "/var/log/containers")
    cluster.run("tee", "/etc/cni/net.d/10-pods.conflist", stdin=json.dumps(_NETWORK))
    _make_cgroups()
    (cluster.folder / "containerd.toml").write_text(_CONTAINERD)
    cluster.spawn("containerd", f"--config={cluster.folder}/containerd.toml")
    wait_until(lambda: "Server:" in cluster.run("ctr", "version", check=False), "containerd")
    cluster.run("ctr", "-n", "k8s.io", "images", "import", str(images))
    configuration = cluster.folder / "kubelet.yaml"
    configuration.write_text(yaml.safe_dump(_KUBELET))
    cluster.spawn(
        "kubelet",
        f"--kubeconfig={cluster.kubeconfig}",
        f"--config={configuration}",
        f"--hostname-override={NAME}",
        f"--node-ip={_ADDRESS}",
    )
    corefile = cluster.folder / "Corefile"
    corefile.write_text(_CORE_DNS.format(kubeconfig=cluster.kubeconfig))
    cluster.spawn("coredns", f"-conf={corefile}")

    def ready() -> bool:
        return any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for node in cluster.get("nodes")
            for condition in node["status"]["conditions"]
        )

    wait_until(ready, "the node is ready")
    cluster.kubectl("patch", "node", NAME, "-p", json.dumps({"spec": {"podCIDR": _PODS}}))
    # What one pod sends to another passes no router, but shall meet the rules of one.
    cluster.run("tee", "/proc/sys/net/bridge/bridge-nf-call-iptables", stdin="1")
    cluster.spawn(
        "kube-router",
        f"--kubeconfig={cluster.kubeconfig}",
        f"--hostname-override={NAME}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-loadbalancer=false",
    )


def _make_cgroups() -> None:
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        own = hierarchy / _CGROUP[1:]
        own.mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (own / name).exists():
                (own / name).write_text((hierarchy / name).read_text())


def remove_cgroups() -> None:
    """What a node that has ended leaves: cgroups are the machine's."""
    for root in Path("/sys/fs/cgroup").glob(f"*{_CGROUP}"):
        wait_until(lambda: _is_removed(root), f"nothing is left in {root}")  # noqa: B023


def _is_removed(root: Path) -> bool:
    try:
        for folder in [*reversed([path for path in root.rglob("*") if path.is_dir()]), root]:
            folder.rmdir()
    except OSError:
        # The last process is about to go.
        return False
    return True


def local_volumes(folder: Path, count: int) -> list[dict[str, Any]]:
    """The default storage class, and disks of the node that wait for a claim.

    Each is as a new file system is: it belongs to root, and has a `lost+found`.
    """
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    objects: list[dict[str, Any]] = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "disks", "annotations": default},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    for number in range(count):
        place = folder / str(number)
        (place / "lost+found").mkdir(mode=0o700, parents=True)
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"disk-{number}"},
                "spec": {
                    "storageClassName": "disks",
                    "capacity": {"storage": "1Ti"},
                    "accessModes": ["ReadWriteOnce"],
                    "local": {"path": str(place)},
                    "nodeAffinity": {
                        "required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}
                    },
                },
            }
        )
    return objects
