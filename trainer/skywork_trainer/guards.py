"""Spikes of the training loss: when a loss is one, and what a rollback leaves out. Pure; alike on all ranks.

Every rank sees the same summed loss, so all find the same spikes without a word to each other.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from skywork_trainer.config import Guards

RECALLED_WINDOWS = 3
_LEAST_KNOWN_STEPS = 32
# A curve as flat as rounding leaves it must not make a spike of a thousandth.
_LEAST_DEVIATION = 1e-3


class Spike(NamedTuple):
    """A step whose loss lies far above those before it."""

    step: int
    loss: float
    mean: float
    """Of the losses before it."""
    deviation: float
    """Their standard deviation."""

    def __str__(self) -> str:
        sigmas = (self.loss - self.mean) / self.deviation
        return f"the loss of step {self.step} is {self.loss:.4f}, {sigmas:.1f} sigma above the mean of {self.mean:.4f}"


class SpikeDetector:
    """Remembers the losses of the last steps of a stage.

    One that begins in the middle of a stage is shown the losses of the last RECALLED_WINDOWS windows first. Then it
    judges as if nothing had been interrupted; only a spike, or a new level, early in those can make a difference.
    """

    def __init__(self, guards: Guards, *, stage_start: int) -> None:
        self._guards, self._quiet_until = guards, stage_start + guards.grace_steps
        self._known: deque[float] = deque(maxlen=guards.window_steps)
        self._in_a_row = 0

    def see(self, step: int, loss: float) -> Spike | None:
        """Take the loss of the next step; return a spike if it is one.

        Spikes take no part in the mean they are measured against, unless they last: a quarter of the window in a row
        is no spike but a new level. A loss that is not finite is the engine's to refuse, and is passed over.
        """
        if not math.isfinite(loss):
            return None
        spike = self._compared(step, loss)
        self._in_a_row = self._in_a_row + 1 if spike else 0
        if self._in_a_row > self._guards.window_steps // 4:
            self._known.clear()
            self._in_a_row = 0
            spike = None
        if spike is None:
            self._known.append(loss)
        return spike

    def _compared(self, step: int, loss: float) -> Spike | None:
        known = self._known
        if step < self._quiet_until or len(known) < min(_LEAST_KNOWN_STEPS, self._guards.window_steps):
            return None
        mean = math.fsum(known) / len(known)
        variance = math.fsum((past - mean) ** 2 for past in known) / len(known)
        deviation = max(math.sqrt(variance), _LEAST_DEVIATION * abs(mean))
        return Spike(step, loss, mean, deviation) if loss > mean + self._guards.spike_sigmas * deviation else None


class Interval(NamedTuple):
    """Steps [first, last)."""

    first: int
    last: int


class Rollback(BaseModel):
    """One return to an earlier checkpoint, kept beside the checkpoints: what every later generation goes by."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int
    """Counted from 1 over the run."""
    time: float
    """Unix seconds."""
    saved_by: tuple[int, int]
    """Incarnation and generation that decided it; what they and older ones saved behind `to_step` is abandoned."""
    spike_step: int
    loss: float
    mean: float
    deviation: float
    to_step: int
    """Step of the checkpoint that training returns to."""
    skip: Interval
    """Steps that are not trained; they count as done."""


def plan_rollback(
    spike: Spike,
    guards: Guards,
    *,
    saved_steps: Iterable[int],
    stage_end: int,
    past: Sequence[Rollback],
    now: float,
    saved_by: tuple[int, int],
) -> Rollback | None:
    """Return what to do about a spike, None when no checkpoint lies before what is to be left out.

    `saved_steps` are the steps of the checkpoints that can be returned to, 0 standing for the start of the run.
    """  # fmt: skip
    first = max(spike.step - guards.rollback_steps, 0)
    to_step = max((step for step in saved_steps if step <= first), default=None)
    if to_step is None:
        return None
    return Rollback(
        number=len(past) + 1,
        time=now,
        saved_by=saved_by,
        spike_step=spike.step,
        loss=spike.loss,
        mean=spike.mean,
        deviation=spike.deviation,
        to_step=to_step,
        skip=Interval(first, min(first + guards.skip_steps, stage_end)),
    )


def is_abandoned(saved_by: tuple[int, int], step: int, rollbacks: Iterable[Rollback]) -> bool:
    """Return whether a checkpoint of this incarnation and generation lies on a branch that a rollback has left."""
    return any(saved_by <= rollback.saved_by and step > rollback.to_step for rollback in rollbacks)


def is_skipped(step: int, rollbacks: Iterable[Rollback]) -> bool:
    """Return whether a step is left out."""
    return any(rollback.skip.first <= step < rollback.skip.last for rollback in rollbacks)
