"""Training loss keeps falling and the held-out average does not follow: data is repeated, or leaks duplicates.

Only inside a stage whose mixture stays as it is: another mixture has another training loss.
"""

import math
from dataclasses import dataclass

import numpy as np

from skywork_trainer.config import Diagnosis
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.series import Floats, aligned, holds, is_measured, trend
from skywork_trainer.diagnosis.wording import repeated, times_read, tokens

TYPE = "GapGrowing"
LEAST_GROWTH = 0.01
"""Nats per token over the stretch looked at."""
SIGMAS = 4.0
FOLLOWS = 0.5
"""Share of the training loss's fall; an average that falls by more follows it."""
LEAST_STRETCH = 0.05
"""Of the run's planned tokens."""
LEAST_POINTS = 6
LASTING_POINTS = 3
REPLAYED_POINTS = 32
SEVERAL_EPOCHS = 1.5


@dataclass(frozen=True)
class _Moved:
    """Over the stretch."""

    train: float
    held_out: float
    growth: float
    error: float
    """Of the growth."""
    certain: bool
    """Whether the fall of the training loss is no noise."""
    since: float

    @property
    def follows(self) -> float:
        return self.held_out / self.train if self.train < 0 else 1.0

    @property
    def enters(self) -> bool:
        return self.certain and self.growth > max(LEAST_GROWTH, SIGMAS * self.error) and self.follows < FOLLOWS

    @property
    def leaves(self) -> bool:
        return self.growth < LEAST_GROWTH / 2 or self.follows > (1 + FOLLOWS) / 2


def gap_growing(evidence: Evidence) -> Diagnosis | None:
    """Return whether training and held-out loss part; None in a short stage, or in one that moves its mixture."""
    if not evidence.span.steady_mixture:
        return None
    points = [point for point in evidence.stage_points if is_measured(point.train_loss)]
    names, steps_N, losses_DN = aligned(points)
    if not names:
        return None
    average_N, count = losses_DN.mean(axis=0), len(steps_N)
    train_N = np.array([point.train_loss for point in points], dtype=np.float64)
    moves = [
        _moved(steps_N[:seen], train_N[:seen], average_N[:seen], evidence)
        for seen in range(max(count - REPLAYED_POINTS, 0) + 1, count + 1)
    ]
    move = moves[-1]
    if move is None:
        return None
    known = [each for each in moves if each is not None]
    found = holds(
        [each.enters for each in known],
        [each.leaves for each in known],
        times=LASTING_POINTS,
        before=evidence.found_before(TYPE),
    )
    stretch = tokens((steps_N[-1] - move.since) * evidence.tokens_per_step)
    evidently = (
        f"over the last {stretch} training loss moved by {move.train:+.3f} and the held-out average by "
        f"{move.held_out:+.3f}; the gap is {average_N[-1] - train_N[-1]:+.3f}, {move.growth:+.3f} +- {move.error:.3f}"
    )
    if not found:
        return Diagnosis(type=TYPE, found=False, reason="Following", message=f"No growing gap: {evidently}.")
    often = repeated(evidence.epochs, SEVERAL_EPOCHS)
    reason = "Repetition" if often else "TrainingLossOptimistic"
    advice = (
        f"Sources are repeated ({times_read(often)}): lower their share, add fresh data, or end the stage."
        if often
        else "Look for duplicates in the sources, and trust the held-out loss: the training loss promises too much."
    )
    return Diagnosis(type=TYPE, found=True, reason=reason, message=f"The gap grows: {evidently}. {advice}")


def _moved(steps_N: Floats, train_N: Floats, average_N: Floats, evidence: Evidence) -> _Moved | None:
    span, scale, now = evidence.span, evidence.planned_steps, float(steps_N[-1])
    begin = min((span.first + now) / 2, now - LEAST_STRETCH * scale)
    late_N = steps_N >= begin
    if begin < max(span.first, span.warm) or late_N.sum() < LEAST_POINTS:
        return None
    x_N = steps_N[late_N] / scale
    train, held_out = trend(x_N, train_N[late_N]), trend(x_N, average_N[late_N])
    if train is None or held_out is None:
        return None
    width = float(x_N[-1] - x_N[0])
    return _Moved(
        train=train.slope * width,
        held_out=held_out.slope * width,
        growth=(held_out.slope - train.slope) * width,
        error=math.hypot(held_out.error, train.error) * width,
        certain=-train.slope > SIGMAS * train.error,
        since=float(steps_N[late_N][0]),
    )
