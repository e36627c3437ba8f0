"""Which node is broken: before a generation trains, each computes, and talks to one neighbour and then to the other.

A node that fails with both neighbours, while they do well with theirs, is the broken one: two rounds of pairs tell it
from any number of others in the time of two collectives.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from skywork_trainer.collectives import World
from skywork_trainer.config import NODE_CHECK_FAILED, PEER_LOST, Place

LIMIT_SECONDS = 20.0
"""For each of two rounds, and for hearing what all have found. They follow each other for everybody at the same times:
whoever has waited in vain in the first is still in time for its partner in the second."""
_LEGS = 3
SLOW = 3.0
"""Times the median that a product of matrices, or an exchange in both rounds, may take."""
LEAST_COMPARED = 4
_EXCHANGED = 4 << 20
_MULTIPLY_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """One round with one neighbour."""

    partner: int
    """Its rank."""
    seconds: float | None
    """None when it did not come to an end."""
    right: bool = True
    """Whether the sum was the sum."""


@dataclass(frozen=True)
class Report:
    """What one rank found."""

    device: str
    product_seconds: float
    checksum: float
    """Of a product that is the same on every rank."""
    exchanges: tuple[Exchange, ...]


class NodeCheckFailed(Exception):
    """This rank's node is broken, or, with reason PeerLost, another one's is."""

    retryable = True

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.message, self.reason = message, reason


def check_nodes(world: World, place: Place, store: Any) -> None:
    """Raise NodeCheckFailed on all ranks when a node is found to be broken; otherwise return. Collective.

    `store` is the group's: what a rank found is told there, where nobody has to wait for one that hangs.
    """
    begun = time.monotonic()
    store.set(f"node-check/{world.rank}", json.dumps(asdict(_examine(world, place, store, begun))))
    heard: dict[int, Report] = {}
    for rank in range(world.size):
        said = _told(store, f"node-check/{rank}", begun + _LEGS * LIMIT_SECONDS)
        if said is not None:
            heard[rank] = _read(said)
    broken = verdict(heard, world.size)
    # The store goes with rank 0, and who does not hear what was found would only say that it lost its peers.
    store.set(f"node-check-heard/{world.rank}", "")
    if world.rank == 0:
        for rank in heard:
            _told(store, f"node-check-heard/{rank}", time.monotonic() + LIMIT_SECONDS)
    if not broken:
        _log.info("node check: all %d ranks are well, %.1f s", world.size, time.monotonic() - begun)
        return
    if world.rank in broken:
        raise NodeCheckFailed(f"node check: rank {world.rank} {broken[world.rank]}", reason=NODE_CHECK_FAILED)
    named = "; ".join(f"rank {rank} {why}" for rank, why in sorted(broken.items()))
    raise NodeCheckFailed(f"node check: {named}", reason=PEER_LOST)


def _told(store: Any, key: str, until: float) -> bytes | None:
    try:
        store.wait([key], timedelta(seconds=max(until - time.monotonic(), 0.1)))
        found: bytes = store.get(key)
        return found
    except RuntimeError:  # its time-out is one, too
        return None


def partners(node: int, nodes: int) -> tuple[int | None, int | None]:
    """Return whom a node talks to in the first and in the second round; None where it is left over."""
    first = node + 1 if node % 2 == 0 else node - 1
    second: int | None = (node + 1) % nodes if node % 2 else node - 1
    if node == 0:
        second = nodes - 1 if nodes % 2 == 0 else None
    return first if first < nodes else None, second if nodes > 2 else None


def verdict(reports: Mapping[int, Report], size: int) -> dict[int, str]:
    """Return the broken ranks, and what is wrong with each; empty where all are well, or nobody can tell which is not.

    Of two that fail with each other only the link between them may be broken; one that fails with all its neighbours,
    who do well with everybody else, is broken itself.
    """
    broken = {rank: "said nothing" for rank in range(size) if rank not in reports}
    for rank, report in reports.items():
        fault = _computes_wrongly(rank, reports) or _computes_slowly(report, reports)
        if fault:
            broken[rank] = fault
    outvoted = {}
    for rank, report in reports.items():
        judged = [exchange for exchange in report.exchanges if exchange.partner not in broken]
        if rank in broken or not judged or not all(_failed(exchange, reports) for exchange in judged):
            continue
        others = [_others(exchange.partner, rank, reports) for exchange in judged]
        well = not any(_failed(exchange, reports) for theirs in others for exchange in theirs)
        if well and (len(judged) > 1 or others[0]):
            met = " and ".join(f"rank {exchange.partner}" for exchange in judged)
            outvoted[rank] = f"could not exchange with {met} in time and rightly"
    return broken | outvoted


def _others(rank: int, other: int, reports: Mapping[int, Report]) -> list[Exchange]:
    """What a rank did with anybody else than `other`."""
    return [exchange for exchange in reports[rank].exchanges if exchange.partner != other]


def _failed(exchange: Exchange, reports: Mapping[int, Report]) -> bool:
    if exchange.seconds is None or not exchange.right:
        return True
    took = [e.seconds for report in reports.values() for e in report.exchanges if e.seconds is not None]
    return len(took) >= 2 * LEAST_COMPARED and exchange.seconds > max(SLOW * median(took), 0.5)


def _computes_wrongly(rank: int, reports: Mapping[int, Report]) -> str:
    alike = [report.checksum for report in reports.values() if report.device == reports[rank].device]
    usual = max(set(alike), key=alike.count)
    own = reports[rank].checksum
    outvoted = alike.count(usual) > len(alike) / 2 and own != usual
    return f"computes wrongly: a product's sum is {own!r}, the others' is {usual!r}" if outvoted else ""


def _computes_slowly(report: Report, reports: Mapping[int, Report]) -> str:
    alike = [other.product_seconds for other in reports.values() if other.device == report.device]
    if len(alike) < LEAST_COMPARED or report.product_seconds <= SLOW * median(alike):
        return ""
    return f"computes slowly: a product takes {report.product_seconds:.3g} s, the others' {median(alike):.3g} s"


def _examine(world: World, place: Place, store: Any, begun: float) -> Report:
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    seconds, checksum = _multiply(world.device)
    each = place.local_world_size
    node, nodes = world.rank // each, world.size // each
    exchanges = [
        _exchange(world, partner * each + place.local_rank, store, begun + (number + 1) * LIMIT_SECONDS)
        for number, partner in enumerate(partners(node, nodes))
        if partner is not None
    ]
    return Report(device, seconds, checksum, tuple(exchanges))


def _multiply(device: torch.device) -> tuple[float, float]:
    """Return how long a product takes once it is warm, and a sum over it that is exact in fp32."""
    width = 4096 if device.type == "cuda" else 512
    rows = torch.arange(width, device=device) % 7
    left = (rows[:, None] + rows[None, :]).remainder(5).float()
    times: list[float] = []
    until = time.perf_counter() + _MULTIPLY_SECONDS
    # The fastest of many: what else a machine does for a moment is no fault of it.
    while not times or time.perf_counter() < until:
        begun = time.perf_counter()
        checksum = float((left @ left)[:: width // 8].double().sum())  # which waits for the device
        times.append(time.perf_counter() - begun)
    return min(times), checksum


def _exchange(world: World, partner: int, store: Any, until: float) -> Exchange:
    """Sum a tensor with one other rank."""
    low, high = sorted((world.rank, partner))
    limit = timedelta(seconds=max(until - time.monotonic(), 1.0))
    # Not new_group: it counts groups, so ranks that failed to make one before would look for this one elsewhere.
    make: Any = dist.ProcessGroupNCCL if world.device.type == "cuda" else dist.ProcessGroupGloo
    try:
        pair = make(
            dist.PrefixStore(f"node-check-{low}-{high}", store),  # type: ignore[attr-defined]
            int(world.rank == high),
            2,
            limit,
        )
        own = torch.full((_EXCHANGED,), float(world.rank + 1), device=world.device)
        begun = time.perf_counter()
        work = pair.allreduce([own])
        while not work.is_completed():
            if time.monotonic() > until:
                return Exchange(partner, None)
            time.sleep(0.001)
        work.wait()
        seconds = time.perf_counter() - begun
        return Exchange(partner, seconds, bool((own == world.rank + partner + 2).all()))
    except RuntimeError as error:
        _log.warning("node check: no exchange with rank %d: %s", partner, error)
        return Exchange(partner, None)


def _read(text: bytes) -> Report:
    said = json.loads(text)
    exchanges: Sequence[dict[str, Any]] = said.pop("exchanges")
    return Report(exchanges=tuple(Exchange(**one) for one in exchanges), **said)
