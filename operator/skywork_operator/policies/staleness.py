"""Whether the newest checkpoint is older than it should be. Pure."""

from skywork_operator.api.quantities import parse_duration_seconds, parse_quantity
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec
from skywork_operator.policies.pace import for_people
from skywork_operator.times import seconds

INTERVALS = 2
"""Times the interval that a checkpoint may be old."""
SLACK_SECONDS = 10.0
"""And so much: that a save takes its time, and is heard of a little later, is no sign of anything."""
DEFAULT_SECONDS = 600
LONGEST_AUTO_SECONDS = 3600.0
"""The trainer chooses no longer interval than that, unless a single save takes longer."""


def asked_seconds(spec: SkyworkRunSpec) -> int | None:
    """Time between two checkpoints that the spec asks for; None where it is steps, tokens or the trainer's choice."""
    given = spec.checkpoints
    if given.every_steps is not None or given.every_tokens is not None or given.every == "Auto":
        return None
    return int(parse_duration_seconds(given.every)) if given.every is not None else DEFAULT_SECONDS


def interval_seconds(spec: SkyworkRunSpec, step_seconds: float | None) -> float | None:
    """Time between two checkpoints, given what a step takes on average where steps or tokens are asked for.

    None while that is not known: a single step may be many times faster than the mean.
    """
    given = spec.checkpoints
    if given.every == "Auto":
        return LONGEST_AUTO_SECONDS
    if given.every_steps is None and given.every_tokens is None:
        return asked_seconds(spec)
    if step_seconds is None:
        return None
    if given.every_tokens is None:
        return (given.every_steps or 1) * step_seconds
    return max(parse_quantity(given.every_tokens) / parse_quantity(spec.batch.global_tokens), 1.0) * step_seconds


def stale_at(status: SkyworkRunStatus, interval: float) -> float | None:
    """When the newest checkpoint of a run that trains becomes too old; None before the generation's first step.

    A generation's time counts from its first step: how long nothing trained before says nothing of its saves.
    """
    if status.first_step_time is None:
        return None
    saved = seconds(status.last_checkpoint.time) if status.last_checkpoint is not None else 0.0
    return max(saved, seconds(status.first_step_time)) + INTERVALS * interval + SLACK_SECONDS


def sentence(status: SkyworkRunStatus, interval: float, now: float) -> str:
    """How old the checkpoint is, and what to do."""
    saved = status.last_checkpoint
    age = f"is {_span(now - seconds(saved.time))} old" if saved is not None else "does not exist yet"
    return (
        f"the newest checkpoint {age}, and one is due every {_span(interval)}: a crash now costs all that was "
        "trained since. Look at skywork_checkpoint_failures_total and skywork_checkpoint_duration_seconds, and at the "
        "log of rank 0; checkpoints.every below what a save takes skips saves"
    )


def _span(spent: float) -> str:
    return for_people(spent) if spent >= 60 else f"{spent:.0f}s"
