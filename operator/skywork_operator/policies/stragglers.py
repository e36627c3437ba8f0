"""Which nodes hold the others up: by how long their own forward passes take, in which nobody waits for anybody."""

from collections.abc import Sequence
from statistics import median

from skywork_operator.api.status import Straggler
from skywork_operator.times import seconds, timestamp
from skywork_operator.world import Pod

SLOWDOWN = 1.25
"""Times the median from which on a node counts as slow: machines of one kind differ by a few per cent."""
LEAST_NODES = 3
"""Of two nodes that differ, nobody can tell which one is as it should be."""
TELL_AFTER_SECONDS = 60.0
MOST = 16


def observed(before: Sequence[Straggler], members: Sequence[Pod], now: float) -> list[Straggler]:
    """The slow nodes of a world that trains, slowest first, each with the time since when it is.

    Of several pods on one node the slowest speaks for it.
    """
    spent = [(pod, pod.agent.forward_seconds) for pod in members if pod.agent is not None]
    known = [(pod, took) for pod, took in spent if took > 0]
    if len(known) < LEAST_NODES:
        return []
    usual, since = median(took for _, took in known), {entry.node: entry.time for entry in before}
    slow: dict[str, Straggler] = {}
    for pod, took in sorted(known, key=lambda entry: (-entry[1], entry[0].name)):
        if took >= SLOWDOWN * usual and pod.node not in slow:
            started = since.get(pod.node, timestamp(now))
            slow[pod.node] = Straggler(node=pod.node, pod=pod.name, slowdown=f"{took / usual:.1f}", time=started)
    return list(slow.values())[:MOST]


def lasting(stragglers: Sequence[Straggler], now: float) -> list[Straggler]:
    """Those that have been slow for long enough to be told of."""
    return [entry for entry in stragglers if now - seconds(entry.time) >= TELL_AFTER_SECONDS]


def sentence(stragglers: Sequence[Straggler]) -> str:
    """Who is slow, and by how much, for people."""
    said = [f"node {entry.node} (pod {entry.pod}) takes {entry.slowdown} times as long" for entry in stragglers]
    return f"{'; '.join(said)} as the median for its forward passes, and all others wait for it"
