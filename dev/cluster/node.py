"""One node: containerd, kubelet and kube-proxy in a network namespace and a cgroup of their own."""

import json
import os
from pathlib import Path

import yaml

from dev.cluster import cgroups, image, processes
from dev.cluster.control_plane import ControlPlane
from dev.cluster.network import POD_NETWORK, Place

_CONTAINERD = """\
version = 3
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
  address = "{socket}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = "{binaries}/runc"
  Root = "{folder}/runc"
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{binaries}"]
  conf_dir = "{folder}/cni"
"""


def start_node(place: Place, folder: Path, plane: ControlPlane) -> None:
    """Start the node's three daemons and load the images; it registers itself with the API server."""
    socket = folder / "containerd.sock"
    cgroups.create(place.namespace)
    _write_configuration(place, folder, plane, socket)
    path = {"PATH": f"{plane.binaries}:{os.environ['PATH']}"}
    containerd = [str(plane.binaries / "containerd"), "--config", str(folder / "containerd.toml")]
    daemon = processes.start("containerd", place.inside(*containerd), folder, path)
    processes.wait(f"containerd of {place.name}", socket.exists, 30, folder / "containerd.log", daemon)
    import_images(folder, plane.binaries)
    kubelet = [
        str(plane.binaries / "kubelet"), f"--config={folder}/kubelet.yaml", f"--kubeconfig={folder}/kubelet.kubeconfig",
        f"--root-dir={folder}/kubelet", f"--cert-dir={folder}/kubelet-pki", f"--hostname-override={place.name}",
        f"--node-ip={place.address}",
    ]  # fmt: skip
    processes.start("kubelet", place.inside(*kubelet), folder, path)
    proxy = [
        str(plane.binaries / "kube-proxy"), f"--kubeconfig={folder}/proxy.kubeconfig", "--proxy-mode=nftables",
        f"--cluster-cidr={POD_NETWORK}", f"--hostname-override={place.name}",
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
    ]  # fmt: skip
    processes.start("kube-proxy", place.inside(*proxy), folder, path)


def import_images(folder: Path, binaries: Path) -> None:
    """Load the local images into the node whose state is `folder`, replacing those of the same name."""
    for archive in (image.pause_image(binaries / "pause"), image.development_image()):
        image.import_image(archive, ctr=binaries / "ctr", socket=folder / "containerd.sock")


def _write_configuration(place: Place, folder: Path, plane: ControlPlane, socket: Path) -> None:
    (folder / "cni").mkdir(parents=True, exist_ok=True)
    text = _CONTAINERD.format(folder=folder, socket=socket, pause=image.PAUSE, binaries=plane.binaries)
    (folder / "containerd.toml").write_text(text)
    ipam = {
        "type": "host-local",
        "dataDir": f"{folder}/cni-addresses",
        "ranges": [[{"subnet": place.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}
    (folder / "cni/10-pods.conflist").write_text(json.dumps(network))
    # No DNS server runs here. One that refuses at once costs nothing; one that does not answer costs c10d 10 s a name.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (folder / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(place, folder, plane, socket)))
    user = f"system:node:{place.name}"
    plane.pki.kubeconfig(folder / "kubelet.kubeconfig", user=user, group="system:nodes")
    plane.pki.kubeconfig(folder / "proxy.kubeconfig", user="system:kube-proxy")


def _kubelet(place: Place, folder: Path, plane: ControlPlane, socket: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": place.address,
        "containerRuntimeEndpoint": f"unix://{socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(plane.pki.ca)},
        },
        "authorization": {"mode": "Webhook"},
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.namespace}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "oomScoreAdj": 0,
        "podLogsDir": f"{folder}/logs",
        "resolvConf": f"{folder}/resolv.conf",
        # Short, so that a dead node is noticed in seconds here.
        "nodeLeaseDurationSeconds": 8,
        "nodeStatusUpdateFrequency": "2s",
        # The downward-API volume carries the membership; it follows a pod's update at once, and this bounds the rest.
        "syncFrequency": "10s",
        "registryPullQPS": 0,
        "evictionHard": {"memory.available": "100Mi"},
    }
