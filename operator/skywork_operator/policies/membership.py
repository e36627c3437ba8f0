"""Which pods form the next world, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

from skywork_trainer.config import PEER_LOST, AgentPhase, Failure, Membership, Role

from skywork_operator.world import Pod

MASTER_PORT_FIRST = 29500
MASTER_PORT_SPAN = 500


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The newest generation as its pods show it."""

    number: int
    nodes: int
    """World size in nodes as it was formed; 0 when no pod holds a place."""
    intact: bool
    """Every place is held by a pod that trains or is done, and at least one still trains."""
    finished: bool
    """Every member is done: nothing is left to do for this generation."""
    failure: Failure | None
    """Root cause: the earliest failure of its workers."""
    lost: tuple[str, ...]
    """Names of members that ended or are being deleted before they were done."""


def observe_generation(pods: Sequence[Pod]) -> Generation:
    """Read the newest generation off the pods' annotations and their agents' words."""
    words = [pod.membership for pod in pods if pod.membership is not None and pod.membership.role is Role.TRAIN]
    number = max((word.generation for word in words), default=0)
    members = [pod for pod in pods if number and pod.trains(number)]
    nodes = max((pod.membership.nodes for pod in members if pod.membership is not None), default=0)
    failures = [failure for pod in members if (failure := pod.failure(number)) is not None]
    lost = tuple(pod.name for pod in members if _is_lost(pod))
    places = {pod.membership.rank for pod in members if pod.membership is not None}
    whole = bool(members) and places == set(range(nodes)) and not failures and not lost
    finished = whole and all(_is_done(pod) for pod in members)
    return Generation(
        number=number,
        nodes=nodes,
        intact=whole and not finished,
        finished=finished,
        # A worker that lost its peer only echoes what ended the peer, and may well say so first.
        failure=min(failures, key=lambda f: (f.reason == PEER_LOST, f.time), default=None),
        lost=lost,
    )


def _is_done(pod: Pod) -> bool:
    return pod.phase == "Succeeded" or (pod.agent is not None and pod.agent.phase is AgentPhase.DONE)


def _is_lost(pod: Pod) -> bool:
    return not _is_done(pod) and (pod.terminating or pod.phase in ("Failed", "Unknown"))


def next_world(
    *, pods: Sequence[Pod], wanted: int, fewest: int, waited_seconds: float, shrink_after_seconds: float
) -> list[Pod] | None:
    """Pods of the next generation, in rank order, or None while it is worth waiting for more.

    All of `wanted` start at once; fewer (but at least `fewest`) start when `shrink_after_seconds` have gone by since
    the last world ended. Pods that finished their part need no place, so they lower both bounds.
    """
    finished = len({pod.index for pod in pods if pod.phase == "Succeeded"})
    by_index: dict[int, Pod] = {pod.index: pod for pod in pods if pod.usable}
    usable = [by_index[index] for index in sorted(by_index)]
    if not usable:
        return None
    if len(usable) >= wanted - finished:
        return usable[: max(wanted - finished, 1)]
    if waited_seconds >= shrink_after_seconds and len(usable) >= fewest - finished:
        return usable
    return None


def places(world: Sequence[Pod], *, generation: int, drain: bool) -> list[tuple[Pod, Membership]]:
    """One membership per pod of `world`, ranks in the order given; rank 0's pod IP is the master.

    The port moves with the generation, so that a world never meets the listener of the one before.
    """
    port = MASTER_PORT_FIRST + generation % MASTER_PORT_SPAN
    return [
        (
            pod,
            Membership(
                generation=generation,
                role=Role.TRAIN,
                rank=rank,
                nodes=len(world),
                master=f"{world[0].ip}:{port}",
                drain=drain,
            ),
        )
        for rank, pod in enumerate(world)
    ]
