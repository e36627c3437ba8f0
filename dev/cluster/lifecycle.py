"""Up, down and status of the whole development cluster."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.cluster import cgroups, network, processes
from dev.cluster.build import ensure_built
from dev.cluster.control_plane import start_control_plane, stop_control_plane
from dev.cluster.network import HOST_ADDRESS, Place
from dev.cluster.node import start_node
from dev.cluster.paths import STATE
from dev.cluster.storage import start_storage

API_PORT = 16440
MOST_NODES = 9
_COMPLETE = STATE / "up"

# What kube-proxy may do; kubeadm binds the same built-in role.
_PROXY_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "kube-proxy"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
    "subjects": [{"kind": "User", "name": "system:kube-proxy"}],
}


def up(nodes: int, say: Callable[[str], None]) -> None:
    """Boot the cluster unless it is up; what an interrupted `up` left is taken down first."""
    if os.geteuid() != 0:
        raise RuntimeError("the development cluster makes network namespaces and mounts: run it as root")
    binaries = ensure_built(say)
    if _COMPLETE.exists() and all_alive():
        say(f"the cluster is up already: KUBECONFIG={STATE}/kubeconfig")
        return
    if STATE.exists() or network.namespaces() or network.links():
        say("removing what an earlier cluster left")
        down(say)
    started = time.monotonic()
    STATE.mkdir(parents=True, mode=0o755)
    network.create_bridge()
    nodes = _make_networks(nodes, say)
    plane = start_control_plane(STATE, binaries, address=HOST_ADDRESS, ports=API_PORT)
    say(f"API server ready after {time.monotonic() - started:.1f} s")
    start_storage(STATE, binaries)
    kubectl(binaries, "apply", "-f", "-", stdin=json.dumps(_PROXY_BINDING))
    for place in map(Place, range(1, nodes + 1)):
        start_node(place, STATE / place.name, plane)
    log = STATE / "node-1/kubelet.log"
    processes.wait(f"{nodes} nodes", lambda: ready_nodes(binaries) == nodes, 90, log)
    _COMPLETE.write_text(json.dumps({"nodes": nodes}))
    say(
        f"{nodes} node{'s' * (nodes > 1)} ready after {time.monotonic() - started:.1f} s: KUBECONFIG={STATE}/kubeconfig"
    )


def _make_networks(nodes: int, say: Callable[[str], None]) -> int:
    """Networks of all nodes, or of one where the machine can make no more."""
    for number in range(1, nodes + 1):
        try:
            network.create_node_network(Place(number), nodes)
        except RuntimeError as error:
            if number == 1:
                raise
            say(f"this machine cannot make node {number} ({error}); going on with {number - 1}")
            return number - 1
    return nodes


def down(say: Callable[[str], None]) -> None:
    """Stop everything and remove every trace; raises RuntimeError naming what is left."""
    places = [Place(n) for n in range(1, MOST_NODES + 1)]
    # Nodes first and by SIGKILL: a kubelet that is asked nicely waits for pods, and they wait for nobody.
    daemons = processes.pids(STATE) if STATE.exists() else {}
    nodes = [pid for name, pid in daemons.items() if name.split("/")[0].startswith("node-")]
    processes.kill(nodes)
    processes.kill(processes.mentioning(f"{STATE}/node-"))
    for place in places:
        cgroups.remove(place.namespace)
    stop_control_plane(STATE)
    processes.kill(list(processes.pids(STATE).values()) if STATE.exists() else [])
    for mount in _mounts():
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    network.remove_networks()
    for link in Path("/var/log/containers").glob("*.log") if Path("/var/log/containers").exists() else ():
        if link.is_symlink() and str(link.readlink()).startswith(f"{STATE}/"):
            link.unlink()
    if STATE.exists():
        shutil.rmtree(STATE, ignore_errors=True)
    left = leftovers()
    if left:
        raise RuntimeError("these are left of the cluster: " + "; ".join(left))
    say("the cluster is down, nothing is left")


def leftovers() -> list[str]:
    """Everything of the cluster's that exists, in words."""
    found = [f"process {pid}" for pid in processes.mentioning(f"{STATE}/")]
    found += [f"mount {mount}" for mount in _mounts()]
    found += [f"network namespace {name}" for name in network.namespaces()]
    found += [f"link {name}" for name in network.links()]
    found += [f"cgroup {p}" for n in range(1, MOST_NODES + 1) for p in cgroups.existing(Place(n).namespace)]
    if STATE.exists():
        found.append(f"folder {STATE}")
    return found


def status() -> tuple[dict[str, Any], bool]:
    """What runs, and whether all of it does."""
    if not _COMPLETE.exists():
        return {"state": "down", "leftovers": leftovers()}, False
    daemons = {name: {"pid": pid, "memoryMiB": _memory_mib(pid)} for name, pid in processes.pids(STATE).items()}
    whole = all_alive()
    return {
        "state": "up" if whole else "broken: run `make cluster-down`",
        "kubeconfig": str(STATE / "kubeconfig"),
        "storage": json.loads((STATE / "s3.json").read_text())["endpoint"],
        "daemons": daemons,
    }, whole


def all_alive() -> bool:
    """Whether every daemon that was started still runs."""
    started = [
        p for p in STATE.rglob("*.pid") if p.parent.name in ("control-plane", STATE.name) or "node-" in p.parent.name
    ]
    return len(processes.pids(STATE)) >= len([p for p in started if p.stem in _DAEMONS])


_DAEMONS = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "s3", "containerd", "kubelet", "kube-proxy",
)  # fmt: skip


def ready_nodes(binaries: Path) -> int:
    """How many nodes are Ready."""
    text = kubectl(binaries, "get", "nodes", "-o", "json")
    conditions = [c for node in json.loads(text)["items"] for c in node["status"].get("conditions", [])]
    return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def kubectl(binaries: Path, *arguments: str, stdin: str | None = None) -> str:
    """Output of kubectl as the cluster's administrator."""
    command = [str(binaries / "kubectl"), f"--kubeconfig={STATE}/kubeconfig", *arguments]
    return subprocess.run(command, input=stdin, text=True, capture_output=True, check=True).stdout


def _mounts() -> list[str]:
    found = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((m for m in found if m.startswith(f"{STATE}/")), key=len, reverse=True)


def _memory_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0
