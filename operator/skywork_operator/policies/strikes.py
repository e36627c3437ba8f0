"""Which nodes are to blame, which of them pods stay away from, and when they are forgiven."""

from collections.abc import Sequence

from skywork_trainer.config import NODE_CHECK_FAILED

from skywork_operator.api.faults import AvoidNodes
from skywork_operator.api.quantities import parse_duration_seconds
from skywork_operator.api.status import NodeStrikes
from skywork_operator.times import seconds, timestamp

MOST_REMEMBERED = 64
_CERTAIN = ("HardwareFault", NODE_CHECK_FAILED)


def struck(
    strikes: Sequence[NodeStrikes], blamed: Sequence[str], *, reason: str, policy: AvoidNodes, nodes: int, now: float
) -> list[NodeStrikes]:
    """The strikes after a failure that `blamed` nodes are to blame for, and after forgiving what is old.

    `nodes` are the most that the run trains on.

    A hardware fault, or a node check that failed, is no matter of chance: it counts for as many strikes as it takes.
    """
    kept = {entry.node: entry for entry in forgiven(strikes, policy=policy, nodes=nodes, now=now)}
    for node in blamed:
        before = kept[node].strikes if node in kept else 0
        more = max(policy.strikes - before, 1) if reason in _CERTAIN else 1
        kept[node] = NodeStrikes(node=node, strikes=before + more, reason=reason, time=timestamp(now))
    newest = sorted(kept.values(), key=lambda entry: entry.time, reverse=True)[:MOST_REMEMBERED]
    return _marked(newest, policy, nodes)


def forgiven(strikes: Sequence[NodeStrikes], *, policy: AvoidNodes, nodes: int, now: float) -> list[NodeStrikes]:
    """The strikes without those older than `forgiveAfter`."""
    limit = parse_duration_seconds(policy.forgive_after)
    return _marked([entry for entry in strikes if now - seconds(entry.time) < limit], policy, nodes)


def avoided(strikes: Sequence[NodeStrikes]) -> tuple[str, ...]:
    """Names of the nodes that pods stay away from."""
    return tuple(entry.node for entry in strikes if entry.avoided)


def _marked(strikes: Sequence[NodeStrikes], policy: AvoidNodes, nodes: int) -> list[NodeStrikes]:
    """Mark the avoided: no more than `max`, the newest first, so that strikes never take a cluster away from its run.

    Of those that only may be to blame no more than half of the run's nodes: what strikes them all is none's fault.
    """
    chosen: set[str] = set()
    by_chance = max(nodes // 2, 1)
    for entry in sorted(strikes, key=lambda entry: entry.time, reverse=True):
        certain = entry.reason in _CERTAIN
        if not policy.strikes or entry.strikes < policy.strikes or len(chosen) == policy.max:
            continue
        if certain or by_chance:
            chosen.add(entry.node)
            by_chance -= not certain
    marked = [entry.model_copy(update={"avoided": entry.node in chosen}) for entry in strikes]
    return sorted(marked, key=lambda entry: entry.node)
