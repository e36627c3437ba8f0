"""Which pods are gone although the cluster still shows them, and when to say so to the cluster.

A node that dies takes nothing back: its pods stay Running, then Terminating, for ever. Their Job waits with them,
because it replaces a pod only when that has ended.
"""

from collections.abc import Mapping
from dataclasses import replace

from skywork_trainer.config import AGENT_PORT

from skywork_operator.world import Node, Pod

SILENT_SECONDS = 30.0
"""How long a pod may be unready, and its agent silent, on a node that seems well."""
OVERDUE_SECONDS = 15.0
"""How long a pod may outlast its grace period: the kubelet needs a few seconds of its own."""


def judged(pods: tuple[Pod, ...], nodes: Mapping[str, Node] | None, now: float) -> tuple[Pod, ...]:
    """Return the pods with `lost` filled in; `nodes` is None where nothing is known of nodes."""
    return tuple(replace(pod, lost=_loss(pod, nodes, now)) for pod in pods)


def _loss(pod: Pod, nodes: Mapping[str, Node] | None, now: float) -> tuple[str, str] | None:
    if pod.phase in ("Succeeded", "Failed") or not pod.node or pod.agent is not None:
        # A node whose kubelet is silent may train on: what counts is whether the agent answers.
        return None
    if nodes is not None:
        node = nodes.get(pod.node)
        if node is None:
            return "NodeLost", f"node {pod.node} is gone from the cluster"
        if node.out_of_service:
            return "NodeLost", f"node {pod.node} is out of service"
        if not node.ready:
            return "NodeLost", f"node {pod.node} is not ready, and the agent there is silent"
    if pod.ends_by is not None and now > pod.ends_by + OVERDUE_SECONDS:
        return "NodeSilent", f"the pod on node {pod.node} has outlasted its grace period by {OVERDUE_SECONDS:.0f} s"
    if pod.phase == "Running" and pod.unready_since is not None and now - pod.unready_since > SILENT_SECONDS:
        silent = f"has been silent for more than {SILENT_SECONDS:.0f} s"
        return "AgentUnreachable", f"the agent on node {pod.node} {silent}; check the network to {pod.ip}:{AGENT_PORT}"
    return None


def silence(pod: Pod, now: float) -> tuple[str, str] | None:
    """Return why a pod that runs cannot be given a place: its agent does not answer the operator; None otherwise.

    A pod that its kubelet finds ready is not lost: the network between operator and pods is cut, not the training.
    """
    if pod.lost is not None:
        return pod.lost
    since = pod.ready_since
    if pod.phase != "Running" or pod.agent is not None or pod.terminating or since is None:
        return None
    if now - since <= SILENT_SECONDS:
        return None
    said = f"ready on node {pod.node} for more than {SILENT_SECONDS:.0f} s, but its agent does not answer the operator"
    return "AgentUnreachable", f"{said}; check NetworkPolicies and the network to {pod.ip}:{AGENT_PORT}"


def to_forget(
    pods: tuple[Pod, ...], nodes: Mapping[str, Node] | None, now: float, *, after_seconds: float
) -> tuple[Pod, ...]:
    """Return the lost pods whose Job shall replace them now.

    Until `after_seconds` have gone by the node may come back by itself. A pod whose agent alone is silent is not among
    them: its kubelet works, and would report its end.
    """
    found = []
    for pod in pods:
        if pod.lost is None or pod.lost[0] == "AgentUnreachable":
            continue
        node = (nodes or {}).get(pod.node)
        since = node.unready_since if node is not None and not node.out_of_service else None
        if since is None or now - since >= after_seconds:
            found.append(pod)
    return tuple(found)


def next_to_forget_seconds(
    pods: tuple[Pod, ...], nodes: Mapping[str, Node] | None, now: float, *, after_seconds: float
) -> float | None:
    """Return how long until `to_forget` names another pod; None when none is on its way."""
    since = [
        node.unready_since
        for pod in pods
        if pod.lost is not None and (node := (nodes or {}).get(pod.node)) is not None and node.unready_since is not None
    ]
    waits = [moment + after_seconds - now for moment in since]
    return min((wait for wait in waits if wait > 0), default=None)


def to_untrack(pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """Return pods that were asked to end by others than their Job, which shall not count that as a failure.

    A Job waits 10 s before it replaces a failed pod, 20 s the next time, up to 10 minutes, until one succeeds; and a
    training pod succeeds once, at the end. Every eviction in weeks of training would make the next one dearer.
    """
    return tuple(pod for pod in pods if pod.terminating and pod.tracked and pod.phase in ("Pending", "Running"))
