"""Removes every trace of the cluster, and looks for what is left."""

import json
import shutil
import subprocess
from pathlib import Path

from dev.cluster import cgroups, network, processes
from dev.cluster.build import GROUPS
from dev.cluster.control_plane import stop_control_plane
from dev.cluster.network import Place
from dev.cluster.paths import STATE

MOST_NODES = 9
STORAGE = STATE / "s3"
"""The buckets; the one thing in the state folder that `down` can be asked to keep."""

# `nsenter` becomes the daemon that it starts; an `up` killed in between leaves it under its own name.
_PROGRAMS = frozenset(("nsenter", *(program for group in GROUPS for program in group.programs)))
_LINKS = Path("/var/log/containers")
_KUBELET = Path("/var/lib/kubelet")


def owner() -> Path | None:
    """State folder of the cluster on this machine: names and addresses allow one; None where there is none."""
    written = network.owner()
    return Path(written) if written else None


def exists() -> bool:
    """Whether anything of a cluster is there, kept storage apart."""
    return bool(network.namespaces() or network.links() or _entries())


def remove(*, keep_storage: bool = False) -> list[str]:
    """Kill, unmount and delete all that is ours, whatever state it is in; returns what is left, in words."""
    sockets = _shim_sockets()
    # Nodes first and by SIGKILL: a kubelet that is asked nicely waits for pods, and they wait for nobody.
    processes.kill(processes.mentioning(f"{STATE}/node-", _PROGRAMS))
    for number in range(1, MOST_NODES + 1):
        cgroups.remove(Place(number).namespace)
    stop_control_plane(STATE)
    # By command line as well as by pid file: an `up` killed between start and note left no file.
    processes.kill(processes.mentioning(f"{STATE}/", _PROGRAMS))
    for mount in _mounts():
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    network.remove_networks(STATE)
    for link in _LINKS.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{STATE}/"):
            link.unlink()
    for socket in sockets:
        socket.unlink(missing_ok=True)
    _remove_device_plugins()
    for entry in _entries():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
    if STATE.exists() and not (keep_storage and STORAGE.exists()):
        shutil.rmtree(STATE, ignore_errors=True)
    return leftovers(keep_storage=keep_storage)


def leftovers(*, keep_storage: bool = False) -> list[str]:
    """Everything of the cluster's that exists, in words."""
    found = [f"process {pid}" for pid in processes.mentioning(f"{STATE}/", _PROGRAMS)]
    found += [f"mount {mount}" for mount in _mounts()]
    found += [f"network namespace {name}" for name in network.namespaces()]
    found += [f"link {name}" for name in network.links()]
    found += [f"cgroup {p}" for n in range(1, MOST_NODES + 1) for p in cgroups.existing(Place(n).namespace)]
    found += [f"{entry}" for entry in _entries()]
    if STATE.exists() and not keep_storage:
        found.append(f"folder {STATE}")
    return found


def _remove_device_plugins() -> None:
    """Remove the one folder that every kubelet shares, unless a kubelet of the machine's own lives beside it."""
    plugins = _KUBELET / "device-plugins"
    if plugins.is_dir() and [entry.name for entry in _KUBELET.iterdir()] == ["device-plugins"]:
        shutil.rmtree(_KUBELET)


def _entries() -> list[Path]:
    """What lies in the state folder beside the buckets."""
    return sorted(path for path in STATE.iterdir() if path != STORAGE) if STATE.exists() else []


def _mounts() -> list[str]:
    found = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((m for m in found if m.startswith(f"{STATE}/")), key=len, reverse=True)


def _shim_sockets() -> list[Path]:
    """Sockets in the machine's shared /run/containerd of pods that run now; a killed shim leaves its own behind."""
    found = []
    for path in STATE.glob("node-*/containerd/state/io.containerd.runtime.v2.task/k8s.io/*/bootstrap.json"):
        try:
            address = json.loads(path.read_text())["address"]
        except (OSError, ValueError, KeyError):
            continue  # A pod that ends just now, or one whose start was cut off.
        found.append(Path(address.removeprefix("unix://")))
    return found
