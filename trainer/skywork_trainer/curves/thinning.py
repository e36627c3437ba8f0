"""Fewer points for a picture: every spike stays. Pure."""

from itertools import pairwise

import numpy as np

from skywork_trainer.curves.run import Floats


def thin(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """Return at most about `most` points in order: of each of many equal stretches the lowest, the highest, the ends.

    A stretch in which nothing is a number stays one point that is none, so that a line shows the gap.
    """
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), max(most // 4, 1) + 1).astype(np.int64)
    kept: list[int] = []
    for low, high in pairwise(edges.tolist()):
        part = y[low:high]
        if not np.isfinite(part).any():
            kept.append(low)
            continue
        chosen = {0, high - low - 1, int(np.nanargmin(part)), int(np.nanargmax(part))}
        kept.extend(low + at for at in sorted(chosen))
    return x[kept], y[kept]


def smooth(y: Floats, window: int) -> Floats:
    """Return the mean of the numbers within `window` around each point; not a number where there are none."""
    if window < 2 or not len(y):
        return y
    finite = np.isfinite(y)
    totals = np.concatenate(([0.0], np.cumsum(np.where(finite, y, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    at = np.arange(len(y))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + (window + 1) // 2, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = np.where(
            counts[high] > counts[low], (totals[high] - totals[low]) / (counts[high] - counts[low]), np.nan
        )
    return means
