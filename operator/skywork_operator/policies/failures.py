"""What a generation's end costs, and when the run gives up."""

from dataclasses import dataclass

from skywork_operator.api.status import ReasonCount, Restarts
from skywork_operator.policies.membership import Generation

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_LIMIT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Why a generation ended."""

    reason: str
    message: str
    counts: bool
    """Whether it uses up the restart budget: a lost pod is the platform's doing, a failed worker is the run's."""


def classify(generation: Generation) -> Ended:
    """Name the cause of a generation that is no longer intact; a lost pod explains its peers' failures."""
    if generation.lost:
        return Ended(reason="PodLost", message=f"pod {', '.join(generation.lost)} was lost", counts=False)
    if generation.failure is not None:
        return Ended(reason=generation.failure.reason, message=generation.failure.message, counts=True)
    return Ended(reason="PodLost", message="a member of the world is gone", counts=False)


def count(restarts: Restarts, ended: Ended, *, checkpoint_step: int) -> Restarts:
    """Restarts after one more generation ended; a checkpoint newer than at the last count refills the budget."""
    progressed = checkpoint_step > restarts.checkpoint_step
    before = 0 if progressed else restarts.without_progress
    tally = {entry.reason: entry.count for entry in restarts.by_reason}
    tally[ended.reason] = tally.get(ended.reason, 0) + 1
    return Restarts(
        total=restarts.total + 1,
        without_progress=before + (1 if ended.counts else 0),
        checkpoint_step=max(checkpoint_step, restarts.checkpoint_step),
        by_reason=[ReasonCount(reason=reason, count=tally[reason]) for reason in sorted(tally)],
    )


def backoff_seconds(without_progress: int) -> float:
    """Pause before the next generation: none after the first failure, then doubling up to a minute."""
    if without_progress <= 1:
        return 0.0
    return min(BACKOFF_FIRST_SECONDS * 2.0 ** (without_progress - 2), BACKOFF_LIMIT_SECONDS)
