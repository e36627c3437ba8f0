"""Which pods form the next world, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skywork_trainer.config import Failure, Membership, Role

from skywork_operator.world import Node, Pod

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
    """At least one member is done: the stage is trained and committed."""
    failures: tuple[tuple[Pod, Failure], ...] = ()
    """What its members say went wrong."""
    lost: tuple[Pod, ...] = ()
    """Members that ended, are being deleted or cannot be reached, before they were done."""
    silent: tuple[Pod, ...] = ()
    """Members that do not answer, and nothing tells why yet."""

    @property
    def failure(self) -> Failure | None:
        """Root cause of the failures."""
        return min((said for _, said in self.failures), key=lambda said: said.order, default=None)


def observe_generation(pods: Sequence[Pod]) -> Generation:
    """Read the newest generation off the pods' annotations and their agents' words."""
    words = [pod.membership for pod in pods if pod.membership is not None and pod.membership.role is Role.TRAIN]
    number = max((word.generation for word in words), default=0)
    members = [pod for pod in pods if number and pod.trains(number)]
    nodes = max((pod.membership.nodes for pod in members if pod.membership is not None), default=0)
    failures = tuple((pod, failure) for pod in members if (failure := pod.failure(number)) is not None)
    lost = tuple(pod for pod in members if _is_lost(pod))
    places = {pod.membership.rank for pod in members if pod.membership is not None}
    silent = tuple(pod for pod in members if pod.agent is None and not pod.done and pod not in lost)
    whole = bool(members) and places == set(range(nodes)) and not failures and not lost
    return Generation(
        number=number,
        nodes=nodes,
        intact=whole and not all(pod.done for pod in members),
        finished=any(pod.done for pod in members),
        failures=failures,
        lost=lost,
        silent=silent,
    )


def _is_lost(pod: Pod) -> bool:
    return not pod.done and (pod.terminating or pod.lost is not None or pod.phase in ("Failed", "Unknown"))


def next_world(
    *,
    pods: Sequence[Pod],
    sizes: Sequence[int],
    waited_seconds: float,
    shrink_after_seconds: float,
    members_of: int = 0,
) -> list[Pod] | None:
    """Pods of the next generation, or None while it is worth waiting for more.

    `sizes` are the world sizes that may be, ascending. The largest starts at once; a smaller one starts when
    `shrink_after_seconds` have gone by since the last world ended. Members of generation `members_of` come first: their
    caches are full; then pods that are warm.
    """
    by_index: dict[int, Pod] = {pod.index: pod for pod in pods if pod.usable}
    usable = sorted(by_index.values(), key=lambda pod: (not pod.trains(members_of), not pod.ready, pod.index))
    size = max((size for size in sizes if size <= len(usable)), default=0)
    if size == 0 or (size < sizes[-1] and waited_seconds < shrink_after_seconds):
        return None
    return usable[:size]


def world_sizes(*, fewest: int, most: int, allowed: Sequence[int] | None) -> list[int]:
    """World sizes a run may have, ascending; never empty, for an `allowed` that names none between is no rule."""
    inside = sorted({size for size in allowed or () if fewest <= size <= most})
    return inside or list(range(fewest, most + 1))


def in_topology_order(world: Sequence[Pod], nodes: Mapping[str, Node] | None, keys: Sequence[str]) -> list[Pod]:
    """The pods so that those whose nodes share the labels `keys`, widest first, are neighbours; then by index.

    Rings run from rank to rank: with neighbours side by side a link between two racks is crossed twice, not each time.
    """

    def place(pod: Pod) -> tuple[list[str], int]:
        labels = nodes[pod.node].labels if nodes and pod.node in nodes else {}
        return [labels.get(key, "") for key in keys], pod.index

    return sorted(world, key=place)


def places(
    world: Sequence[Pod],
    *,
    generation: int,
    drain: bool,
    before_step: int | None = None,
    check: bool = False,
    after: str = "",
    validate_request: str = "",
) -> list[tuple[Pod, Membership]]:
    """One membership per pod of `world`, ranks in the order given; rank 0's pod IP is the master.

    Only rank 0 is told of a validation that was asked for. The port moves with the generation, so that a world never
    meets the listener of the one before.
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
                before_step=before_step,
                check=check,
                after=after,
                validate_request=validate_request if rank == 0 else "",
            ),
        )
        for rank, pod in enumerate(world)
    ]


def request_validation(pods: Sequence[Pod], *, generation: int, request: str) -> list[tuple[Pod, Membership]]:
    """Rank 0's word of its generation with a validation asked for; nothing when it has been told, or nobody asks."""
    return [
        (pod, pod.membership.model_copy(update={"validate_request": request}))
        for pod in pods
        if request
        and pod.usable
        and pod.membership is not None
        and pod.trains(generation)
        and pod.membership.rank == 0
        and pod.membership.validate_request != request
    ]


def dismissals(pods: Sequence[Pod], *, generation: int) -> list[tuple[Pod, Membership]]:
    """One membership per pod that has nothing left to do because the stage is trained, and was not told so yet."""
    return [
        (pod, Membership(generation=generation, role=Role.DONE))
        for pod in pods
        if pod.usable and not pod.done and (pod.membership is None or pod.membership.role is not Role.DONE)
    ]
