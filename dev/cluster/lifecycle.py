"""Up, down and status of the whole development cluster."""

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev.cluster import image, network, processes, teardown
from dev.cluster.build import ensure_built
from dev.cluster.control_plane import start_control_plane
from dev.cluster.network import HOST_ADDRESS, Place
from dev.cluster.node import import_images, start_node
from dev.cluster.paths import STATE, cache
from dev.cluster.storage import start_storage
from dev.cluster.teardown import MOST_NODES as MOST_NODES
from dev.cluster.teardown import leftovers as leftovers

API_PORT = 16440
_COMPLETE = STATE / "up"
_LOCK = Path("/run/lock/skywork-cluster")

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
    with _exclusive(say):
        if _COMPLETE.exists() and all_alive():
            say(f"the cluster is up already: KUBECONFIG={STATE}/kubeconfig")
            return
        if teardown.exists():
            say("removing what an earlier cluster left")
            _remove(say, keep_storage=False)
        for path in image.unreadable():
            say(f"pods will not run: {path} is not readable by everyone, and they run as user 65534")
        _boot(nodes, binaries, say)


def _boot(nodes: int, binaries: Path, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    STATE.mkdir(parents=True, mode=0o755, exist_ok=True)
    network.create_bridge(STATE)
    nodes = _make_networks(nodes, say)
    plane = start_control_plane(STATE, binaries, address=HOST_ADDRESS, ports=API_PORT)
    say(f"API server ready after {time.monotonic() - started:.1f} s")
    start_storage(STATE, binaries)
    kubectl(binaries, "apply", "-f", "-", stdin=json.dumps(_PROXY_BINDING))
    for place in map(Place, range(1, nodes + 1)):
        start_node(place, STATE / place.name, plane)
    _wait_for_nodes(nodes, binaries)
    _COMPLETE.write_text(json.dumps({"nodes": nodes}))
    say(
        f"{nodes} node{'s' * (nodes > 1)} ready after {time.monotonic() - started:.1f} s: KUBECONFIG={STATE}/kubeconfig"
    )


def _wait_for_nodes(nodes: int, binaries: Path) -> None:
    wanted = [Place(number).name for number in range(1, nodes + 1)]
    try:
        processes.wait(f"{nodes} nodes", lambda: ready_nodes(binaries) == nodes, 90)
    except RuntimeError as error:
        conditions = node_conditions(binaries)
        late = next((name for name in wanted if conditions.get(name) != "Ready"), wanted[0])
        raise RuntimeError(f"{error}: {conditions}{processes.tail(STATE / late / 'kubelet.log')}") from error


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


def down(say: Callable[[str], None], *, keep_storage: bool = False) -> None:
    """Stop everything and remove every trace, buckets too unless kept; raises RuntimeError naming what is left."""
    with _exclusive(say):
        _remove(say, keep_storage=keep_storage)


def _remove(say: Callable[[str], None], *, keep_storage: bool) -> None:
    left = teardown.remove(keep_storage=keep_storage)
    if left:
        raise RuntimeError("these are left of the cluster: " + "; ".join(left))
    kept = f"the buckets are kept in {teardown.STORAGE}" if teardown.STORAGE.exists() else "nothing is left"
    say(f"the cluster is down, {kept}")


@contextmanager
def _exclusive(say: Callable[[str], None]) -> Iterator[None]:
    """One `up` or `down` at a time: a second `up` would take the half-booted cluster of the first for a broken one."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `up` or `down` to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        other = teardown.owner()
        if other is not None and other != STATE:
            raise RuntimeError(
                f"a cluster with its state in {other} is up; take it down with SKYWORK_CLUSTER_STATE={other}"
            )
        yield


def load_images(say: Callable[[str], None]) -> None:
    """Load the local images into every running node anew."""
    binaries = ensure_built(say)
    for name in _nodes():
        import_images(STATE / name, binaries)
        say(f"images loaded into {name}")


def status() -> tuple[dict[str, Any], bool]:
    """What runs, and whether all of it does."""
    if not _COMPLETE.exists():
        return {"state": "down", "leftovers": leftovers(keep_storage=True)}, False
    daemons = {name: {"pid": pid, "memoryMiB": _memory_mib(pid)} for name, pid in processes.pids(STATE).items()}
    whole = all_alive()
    return {
        "state": "up" if whole else "broken: run `make cluster-down`",
        "kubeconfig": str(STATE / "kubeconfig"),
        "storage": json.loads((STATE / "s3.json").read_text())["endpoint"],
        "daemons": daemons,
        "nodes": _conditions_if_reachable(),
    }, whole


def _conditions_if_reachable() -> dict[str, str]:
    try:
        return node_conditions(cache() / "bin/current")
    except (RuntimeError, OSError):
        return {}


def kubeconfig() -> Path:
    """The administrator's kubeconfig; raises RuntimeError while the cluster is not up."""
    _nodes()
    return STATE / "kubeconfig"


def all_alive() -> bool:
    """Whether every daemon of a cluster that came up still runs."""
    wanted = {f"control-plane/{n}" for n in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")}
    wanted |= {f"{node}/{daemon}" for node in _nodes() for daemon in ("containerd", "kubelet", "kube-proxy")}
    return {"s3", *wanted} <= processes.pids(STATE).keys()


def _nodes() -> list[str]:
    """Names of the nodes of the cluster that is up."""
    if not _COMPLETE.exists():
        raise RuntimeError("the cluster is not up; boot it with `make cluster-up`")
    return [Place(number).name for number in range(1, json.loads(_COMPLETE.read_text())["nodes"] + 1)]


def ready_nodes(binaries: Path) -> int:
    """How many nodes are Ready."""
    return list(node_conditions(binaries).values()).count("Ready")


def node_conditions(binaries: Path) -> dict[str, str]:
    """Ready or not, by node name, with the kubelet's reason where it is not."""
    found = {}
    for node in json.loads(kubectl(binaries, "get", "nodes", "-o", "json"))["items"]:
        ready = [c for c in node["status"].get("conditions", []) if c["type"] == "Ready"]
        state = "Ready" if ready and ready[0]["status"] == "True" else "NotReady"
        reason = f" ({ready[0]['reason']})" if ready and state != "Ready" else ""
        found[node["metadata"]["name"]] = state + reason
    return found


def kubectl(binaries: Path, *arguments: str, stdin: str | None = None) -> str:
    """Output of kubectl as the cluster's administrator; raises RuntimeError with its words."""
    command = [str(binaries / "kubectl"), f"--kubeconfig={STATE}/kubeconfig", "--request-timeout=15s", *arguments]
    ended = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout


def _memory_mib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:")), 0)
