"""One network namespace a node, joined by a bridge on the host."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.control_plane import SERVICE_NETWORK
from dev.cluster.paths import PREFIX

BRIDGE = f"{PREFIX}0"
HOST_ADDRESS = "10.99.0.1"
POD_NETWORK = "10.244.0.0/16"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_FORWARDING_WAS_OFF = "ip-forward-was-off"


@dataclass(frozen=True)
class Place:
    """Names and addresses of node `number`, counted from 1."""

    number: int

    @property
    def name(self) -> str:
        """Name of the Kubernetes node."""
        return f"node-{self.number}"

    @property
    def namespace(self) -> str:
        """Name of the network namespace, and of the cgroup."""
        return f"{PREFIX}-{self.name}"

    @property
    def link(self) -> str:
        """The host's end of the node's cable."""
        return f"{PREFIX}n{self.number}"

    @property
    def address(self) -> str:
        """The node's address."""
        return f"10.99.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """Addresses of the node's pods."""
        return f"10.244.{self.number}.0/24"

    def inside(self, *command: str) -> list[str]:
        """`command` in the node's network; not by `ip netns exec`, whose fresh /sys would hide the cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]


def create_bridge(state: Path) -> None:
    """Make the bridge that stands for the data centre's network; it bears the name of the cluster's state folder."""
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("link", "set", "dev", BRIDGE, "alias", str(state))
    ip("addr", "add", f"{HOST_ADDRESS}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    if _FORWARDING.read_text().strip() == "0":
        (state / _FORWARDING_WAS_OFF).touch()
        _FORWARDING.write_text("1")


def owner() -> str:
    """State folder of the cluster that made the bridge; empty without one."""
    alias = Path(f"/sys/class/net/{BRIDGE}/ifalias")
    return alias.read_text().strip() if alias.exists() else ""


def create_node_network(place: Place, nodes: int) -> None:
    """Make the namespace of one of `nodes` nodes, its cable, and the routes between all pods."""
    ip("netns", "add", place.namespace)
    ip("link", "add", place.link, "type", "veth", "peer", "name", "eth0", "netns", place.namespace)
    ip("link", "set", place.link, "master", BRIDGE, "up")
    within = ("-n", place.namespace)
    ip(*within, "link", "set", "lo", "up")
    ip(*within, "addr", "add", f"{place.address}/24", "dev", "eth0")
    ip(*within, "link", "set", "eth0", "up")
    subprocess.run(place.inside("sysctl", "-qw", "net.ipv4.ip_forward=1"), check=True)
    for other in map(Place, range(1, nodes + 1)):
        if other != place:
            ip(*within, "route", "add", other.pods, "via", other.address)
    # Services are rewritten by kube-proxy's rules, but a packet without any route never gets that far.
    ip(*within, "route", "add", SERVICE_NETWORK, "via", HOST_ADDRESS)
    ip("route", "add", place.pods, "via", place.address)


def remove_networks(state: Path) -> None:
    """Remove every namespace, link and bridge of ours; routes go with them, and forwarding is as it was before."""
    if (state / _FORWARDING_WAS_OFF).exists():
        _FORWARDING.write_text("0")
    for namespace in namespaces():
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    for link in links():
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)


def namespaces() -> list[str]:
    """Network namespaces of ours that exist."""
    folder = Path("/run/netns")
    return sorted(p.name for p in folder.glob(f"{PREFIX}-node-*")) if folder.exists() else []


def links() -> list[str]:
    """Links of ours that exist on the host."""
    found = [p.name for p in Path("/sys/class/net").iterdir()]
    return sorted(n for n in found if n == BRIDGE or (n.startswith(f"{PREFIX}n") and n[len(PREFIX) + 1 :].isdigit()))


def ip(*arguments: str) -> None:
    """Run `ip`; raises RuntimeError with its words."""
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")
