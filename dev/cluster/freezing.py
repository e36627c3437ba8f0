"""A node that dies the way machines do: it stops where it stands, and nobody is told; and its coming back."""

import os
import signal
from contextlib import suppress

from dev.cluster import cgroups, processes
from dev.cluster.network import Place, ip
from dev.cluster.paths import STATE


def freeze(number: int) -> None:
    """Stop kubelet, container runtime and every pod of node `number`, and pull its cable."""
    place = Place(number)
    ip("link", "set", place.link, "down")
    _signal(place, signal.SIGSTOP)
    cgroups.set_frozen(place.namespace, True)


def thaw(number: int) -> None:
    """Let node `number` go on as if nothing had happened; does nothing to one that runs."""
    place = Place(number)
    cgroups.set_frozen(place.namespace, False)
    _signal(place, signal.SIGCONT)
    ip("link", "set", place.link, "up")


def _signal(place: Place, number: signal.Signals) -> None:
    for name, pid in processes.pids(STATE).items():
        if name.startswith(f"{place.name}/"):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
