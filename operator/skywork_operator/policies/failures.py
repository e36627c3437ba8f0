"""What a generation's end costs, and when the run gives up."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from skywork_trainer.config import HANG, NODE_CHECK_FAILED, PEER_LOST, Failure

from skywork_operator.api.status import LastFailure, ReasonCount, Restarts
from skywork_operator.policies.membership import Generation
from skywork_operator.times import seconds, timestamp

MOST_REASONS = 32
"""Kinds of ends that are counted apart: workers name them, and metrics carry them as a label."""


class Cost(StrEnum):
    """How the end of a generation is charged."""

    FREE = "free"
    """The platform's doing, or a part of how training goes on: it may happen any number of times."""
    WAITS = "waits"
    """Only waiting can cure it: it does not use up the budget, but the pauses grow."""
    COUNTED = "counted"
    """The run's own doing, perhaps: the budget says how often."""


_COSTS = {
    "AgentUnreachable": Cost.FREE,
    "Evicted": Cost.FREE,
    "KubeletEvicted": Cost.FREE,
    "NodeLost": Cost.FREE,
    "NodeSilent": Cost.FREE,
    "NodeTainted": Cost.FREE,
    "PodLost": Cost.FREE,
    "Preempted": Cost.FREE,
    # Each has halved the micro-batch, and with one sequence it is an error that is not retried.
    "OutOfMemory": Cost.FREE,
    # guards.rollback.max bounds these.
    "LossSpike": Cost.FREE,
    "Superseded": Cost.FREE,
    "StorageUnreachable": Cost.WAITS,
    "CredentialsExpired": Cost.WAITS,
    "ThroughputTooLow": Cost.WAITS,
}
_DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "DeletionByTaintManager": "NodeTainted",
    "DeletionByPodGC": "NodeLost",
    "TerminationByKubelet": "KubeletEvicted",
}
_HARDWARE = re.compile(
    r"\bXid\b|uncorrectable ECC|ECC error|double[- ]bit|NVLink error|fallen off the bus|GPU is lost|"
    r"CUDA error: (?:an illegal instruction|hardware|unknown error|uncorrectable)|unhandled (?:system|cuda) error|"
    r"ncclSystemError|ncclUnhandledCudaError|bus error.*(?:device|hardware)|Input/output error|EDAC|Machine Check",
    re.IGNORECASE,
)
_DETERMINISTIC = ("AppError", "NonFinite")
"""Python says the same of the same step: a third try would, too."""
_BLAMED = ("HardwareFault", NODE_CHECK_FAILED, HANG, "Killed", "Crashed")
"""Says something of the node that it was found on."""
_CRASHES = ("Crashed", HANG)
"""May come of the state that was restored: an older checkpoint is tried before the run gives up."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Why a generation ended."""

    reason: str
    message: str
    cost: Cost
    step: int | None = None
    """Step that was being trained."""
    blamed: tuple[str, ...] = ()
    """Nodes that the cause was found on."""


def classify(generation: Generation) -> Ended:
    """Name the cause of a generation that is no longer intact; a lost or silent pod explains its peers' failures."""
    if generation.lost:
        # The pod that says most of why it went: a deletion may be the consequence of another's end.
        known = [lost for lost in generation.lost if lost.lost is not None or lost.disruption or lost.out_of_memory]
        pod = (known or list(generation.lost))[0]
        names = ", ".join(lost.name for lost in generation.lost)
        if pod.out_of_memory:
            message = (
                f"pod {pod.name} used more memory than its node lets it have; raise resources.limits.memory of the "
                "container trainer in trainer.template"
            )
            return Ended(reason="HostOutOfMemory", message=message, cost=Cost.COUNTED)
        if pod.lost is not None:
            reason, message = pod.lost
            blamed = tuple(sorted({lost.node for lost in generation.lost if lost.lost is not None}))
            return Ended(reason=reason, message=f"pod {pod.name}: {message}", cost=Cost.FREE, blamed=blamed)
        reason = _DISRUPTIONS.get(pod.disruption, "PodLost")
        how = {"PodLost": "was lost", "Preempted": "was preempted", "NodeTainted": "was taken off a tainted node"}
        text = f"pod {names} {how.get(reason, 'was evicted')}"
        return Ended(reason=reason, message=text, cost=_COSTS[reason], blamed=())
    failure = generation.failure
    if failure is not None and failure.reason == PEER_LOST and generation.silent:
        names = ", ".join(silent.name for silent in generation.silent)
        text = f"pod {names} does not answer, and its peers have lost it: {failure.message}"
        return Ended(reason="PodLost", message=text, cost=Cost.FREE)
    if failure is not None:
        return _of_failure(failure, generation)
    return Ended(reason="PodLost", message="a member of the world is gone", cost=Cost.FREE)


def _of_failure(failure: Failure, generation: Generation) -> Ended:
    culprits = [pod for pod, said in generation.failures if said.order[:2] == failure.order[:2]]
    node = next((pod.node for pod, said in generation.failures if said == failure), "")
    reason = failure.reason
    if reason in ("AppError", "Crashed", "PeerLost", "Killed") and _HARDWARE.search(failure.message):
        reason = "HardwareFault"
    message = failure.message
    if reason == HANG:
        message = "; ".join(said.message for _, said in sorted(generation.failures, key=lambda f: f[1].order))
        # Where all wait for each other nobody is to blame.
        node = "" if failure.waits or len(culprits) > 1 else node
    return Ended(
        reason=reason,
        message=message,
        cost=_COSTS.get(reason, Cost.COUNTED),
        step=failure.step,
        blamed=(node,) if node and reason in _BLAMED else (),
    )


def count(
    restarts: Restarts, ended: Ended, *, checkpoint_step: int, step: int, now: float, window_seconds: float
) -> Restarts:
    """Restarts after one more generation ended; a checkpoint newer than at the last count refills the budget.

    `step` is what the run had reached, for ends that name no step themselves.
    """
    progressed = checkpoint_step > restarts.checkpoint_step
    recent = [] if progressed else [at for at in restarts.recent if now - seconds(at) <= window_seconds]
    tally = {entry.reason: entry.count for entry in restarts.by_reason}
    named = ended.reason if ended.reason in tally or len(tally) < MOST_REASONS else "Other"
    tally[named] = tally.get(named, 0) + 1
    recent += [timestamp(now)] if ended.cost is Cost.COUNTED else []
    waiting = (0 if progressed else restarts.waiting) + 1 if ended.cost is Cost.WAITS else 0
    last = _repeated(restarts.last, ended, ended.step if ended.step is not None else step, checkpoint_step, now)
    before = None if progressed else restarts.before_step
    if last.reason in _CRASHES and last.repeats >= 2 and before is None and last.resumed_step:
        before = last.resumed_step
    return Restarts(
        total=restarts.total + 1,
        without_progress=len(recent),
        checkpoint_step=max(checkpoint_step, restarts.checkpoint_step),
        recent=recent,
        waiting=waiting,
        last=last,
        before_step=before,
        by_reason=[ReasonCount(reason=reason, count=tally[reason]) for reason in sorted(tally)],
    )


def _repeated(last: LastFailure | None, ended: Ended, step: int, resumed_step: int, now: float) -> LastFailure:
    # Before its first step a generation fails of its surroundings, which may be better the next time.
    same = (
        last is not None
        and ended.step is not None
        and (last.reason, last.step) == (ended.reason, step)
        and _gist(last.message) == _gist(ended.message[:1000])
    )
    return LastFailure(
        reason=ended.reason,
        message=ended.message[:1000],
        time=timestamp(now),
        step=step,
        # What an older checkpoint shall be older than stays the checkpoint of the first of them.
        resumed_step=last.resumed_step if same and last is not None else resumed_step,
        repeats=last.repeats + 1 if same and last is not None else 1,
    )


def _gist(message: str) -> str:
    """The message without what differs from one time to the next: numbers, addresses, the order of ranks."""
    return re.sub(r"0x[0-9a-f]+|[0-9]+(\.[0-9]+)*", "#", message)


def gives_up(restarts: Restarts, *, budget: int) -> str | None:
    """Why the run must fail now; None while another generation may help."""
    last = restarts.last
    if last is not None and last.reason in _DETERMINISTIC and last.repeats >= 2:
        return f"step {last.step} failed {last.repeats} times in the same way: {last.message}"
    if last is not None and last.reason in _CRASHES and last.repeats >= 3 and restarts.before_step is not None:
        return (
            f"step {last.step} failed {last.repeats} times in the same way, the last time from a checkpoint older "
            f"than step {restarts.before_step}: {last.message}"
        )
    if restarts.without_progress > budget:
        return (
            f"{restarts.without_progress} generations in a row failed without a new checkpoint "
            f"(failurePolicy.restartsWithoutProgress is {budget}); the last: {last.message if last else ''}"
        )
    return None


def wants_check(restarts: Restarts, policy: Literal["Never", "AfterFailure", "Always"]) -> bool:
    """Whether the next generation looks for a broken node before it trains."""
    return policy == "Always" or (policy == "AfterFailure" and restarts.without_progress > 0)


def backoff_seconds(restarts: Restarts, *, first_seconds: float, most_seconds: float) -> float:
    """Pause before the next generation: none after the first failure, then doubling."""
    failures = max(restarts.without_progress, restarts.waiting)
    if failures <= 1:
        return 0.0
    return min(first_seconds * 2.0 ** min(failures - 2, 30), most_seconds)
