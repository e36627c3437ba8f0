"""How long training will still take, said so that it does not change with every look. Pure."""

from dataclasses import dataclass

from skywork_trainer.config import Progress

from skywork_operator.times import seconds, timestamp

LEAST_CHANGE_SECONDS = 60.0
LEAST_CHANGE = 0.03
"""Of the time that is left: an estimate that moved by less than both stays."""
LEAST_STEPS = 2
"""Steps behind a generation's first, which is slower, before its pace says anything."""


@dataclass(frozen=True)
class Estimate:
    """When training ends."""

    left: str
    """For people: 3d4h."""
    completion: str
    """RFC 3339."""


def mean_step_seconds(progress: Progress) -> float | None:
    """What a step of the generation takes, its stops for checkpoints and validations included; None while unknown."""
    steps, spent = progress.step - progress.first_step - 1, progress.time - progress.first_step_time
    return spent / steps if progress.first_step_time > 0 and steps >= LEAST_STEPS and spent > 0 else None


def seconds_per_step(progress: Progress, tokens_per_step: int) -> float | None:
    """The mean, or what the newest step took while there is none; None while neither is known."""
    mean = mean_step_seconds(progress)
    if mean is not None:
        return mean
    if progress.tokens_per_second is not None and progress.tokens_per_second > 0:
        return tokens_per_step / progress.tokens_per_second
    return None


def estimate(before: str | None, steps_left: int, step_seconds: float, now: float) -> Estimate:
    """When the steps that are left will be done, given the completion that was estimated before."""
    left = steps_left * step_seconds
    completion = now + left
    if before is not None and abs(seconds(before) - completion) <= max(LEAST_CHANGE_SECONDS, LEAST_CHANGE * left):
        completion = seconds(before)
    return Estimate(left=for_people(completion - now), completion=timestamp(completion))


def for_people(spent: float) -> str:
    """A duration by its two largest units: 3d4h, 5h12m, 12m; <1m for less."""
    minutes = max(int(spent), 0) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else "<1m"
