"""Makes a node fail as a machine does: off the network at once, and silent, until it comes back."""

import os
import signal

from dev.cluster import cgroups, network, processes
from dev.cluster.network import Place
from dev.cluster.paths import STATE


def freeze(number: int, *, pods: bool = True) -> None:
    """Cut node `number` off and stop its kubelet and containerd; its pods too, or they go on behind the cut."""
    place = Place(number)
    daemons = _daemons(place)
    network.ip("link", "set", place.link, "down")
    for pid in daemons:
        os.kill(pid, signal.SIGSTOP)
    if pods:
        cgroups.set_frozen(place.namespace, True)


def thaw(number: int) -> None:
    """Bring node `number` back; its pods go on where they stood, so those replaced meanwhile have a living twin."""
    place = Place(number)
    daemons = _daemons(place)
    network.ip("link", "set", place.link, "up")
    # Seen to be lost with the link on some kernels, and to stay on others.
    network.ip("route", "replace", place.pods, "via", place.address)
    cgroups.set_frozen(place.namespace, False)
    for pid in daemons:
        os.kill(pid, signal.SIGCONT)


def _daemons(place: Place) -> list[int]:
    running = processes.pids(STATE)
    wanted = [f"{place.name}/{name}" for name in ("kubelet", "containerd")]
    missing = [name for name in wanted if name not in running]
    if missing:
        raise RuntimeError(f"not running: {', '.join(missing)}")
    return [running[name] for name in wanted]
