"""How fast a generation's recent steps were. Pure."""

from collections.abc import Sequence

import numpy as np

from skywork_trainer.diagnosis.evidence import RecentStep
from skywork_trainer.diagnosis.series import Floats

UNSETTLED_STEPS = 8
"""The first of a generation: caches are cold, kernels are compiled."""
SUSTAINED_STEPS = 64


def settled_steps(steps: Sequence[RecentStep], generation_step: int) -> Floats:
    """Return seconds and waited seconds [N, 2] of this generation's steps, without the first UNSETTLED_STEPS."""
    first = generation_step + UNSETTLED_STEPS
    rows = [(each.seconds, each.wait_seconds) for each in steps if each.step > first]
    array = np.array(rows, dtype=np.float64).reshape(-1, 2)
    # Leaves out what is no number, too, and keeps sums finite.
    plausible_N = np.all((array >= 0) & (array < 1e9), axis=1)
    return array[plausible_N]


def sustained_seconds(steps: Sequence[RecentStep], generation_step: int) -> float | None:
    """Return the median step time of the newest SUSTAINED_STEPS of a generation; None before there are as many.

    Whoever keeps the least of these knows what the generation can do, see Evidence.best_step_seconds.
    """
    seconds_N = settled_steps(steps, generation_step)[:, 0]
    return float(np.median(seconds_N[-SUSTAINED_STEPS:])) if len(seconds_N) >= SUSTAINED_STEPS else None


def running_medians(seconds_N: Floats, width: int) -> Floats:
    """Return the median of each `width` steps in a row, oldest first."""
    if len(seconds_N) < width:
        return seconds_N[:0]
    return np.median(np.lib.stride_tricks.sliding_window_view(seconds_N, width), axis=1)
