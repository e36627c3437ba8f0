"""Arithmetic on noisy, unevenly spaced curves: what counts as measured, as noise, as a trend, and as lasting.

N counts points, D domains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from skywork_trainer.config import CurvePoint

Floats: TypeAlias = npt.NDArray[np.float64]

LEAST_NOISE = 5e-4
"""Nats; a curve as smooth as rounding leaves it must not make a trend of a ten-thousandth."""
_MOST_LOSS = 1e6
"""Nats per token; beyond it nothing was measured."""
_NOISE_POINTS = 32
_SLACK = 3
"""So many points a domain may be missing from at either end of a curve and still be part of the average."""
_TO_SIGMA = 1.4826
_OUTLIER_SIGMAS = 4.0


def is_measured(loss: float | None) -> bool:
    """Return whether this is a loss to reckon with."""
    return loss is not None and math.isfinite(loss) and abs(loss) < _MOST_LOSS


def of_domain(points: Sequence[CurvePoint], domain: str) -> tuple[Floats, Floats]:
    """Return steps and losses of the points that measured a domain."""
    known = [(point.step, point.losses[domain]) for point in points if is_measured(point.losses.get(domain))]
    array = np.array(known, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def aligned(points: Sequence[CurvePoint]) -> tuple[tuple[str, ...], Floats, Floats]:
    """Return domains, steps [N] and losses [D, N] of the domains that were measured all along.

    Points between two that measured a domain, and did not, take its loss from the line between those. A domain that
    came late or vanished is left out: the average would jump with it.
    """
    steps_N = np.array([point.step for point in points], dtype=np.float64)
    names, rows = [], []
    for domain in sorted({name for point in points for name in point.losses}):
        at = [index for index, point in enumerate(points) if is_measured(point.losses.get(domain))]
        if not at or at[0] > _SLACK or at[-1] < len(points) - 1 - _SLACK or 2 * len(at) < len(points):
            continue
        names.append(domain)
        rows.append(np.interp(steps_N, steps_N[at], [points[index].losses[domain] for index in at]))
    return tuple(names), steps_N, np.array(rows, dtype=np.float64).reshape(len(names), len(points))


def noise(steps_N: Floats, losses_N: Floats) -> float:
    """Return the standard deviation of the newest points about the line through their neighbours."""
    steps, losses = steps_N[-_NOISE_POINTS:], losses_N[-_NOISE_POINTS:]
    if len(steps) < 3:
        return LEAST_NOISE
    span = steps[2:] - steps[:-2]
    part = np.where(span > 0, (steps[1:-1] - steps[:-2]) / np.where(span > 0, span, 1.0), 0.5)
    off = losses[1:-1] - ((1 - part) * losses[:-2] + part * losses[2:])
    scaled = np.abs(off) / np.sqrt(1 + part**2 + (1 - part) ** 2)
    # Few points may lie on a line by chance.
    return max((1 + 2 / len(scaled)) * _TO_SIGMA * float(np.median(scaled)), LEAST_NOISE)


def running_median(values_N: Floats) -> Floats:
    """Return the median of each three neighbours in order, two fewer than there are: one odd point moves nothing."""
    if len(values_N) < 3:
        return values_N[:0]
    return np.median(np.stack([values_N[:-2], values_N[1:-1], values_N[2:]]), axis=0)


@dataclass(frozen=True)
class Trend:
    """A straight line through points."""

    slope: float
    error: float
    """Standard error of the slope."""


def trend(x_N: Floats, y_N: Floats) -> Trend | None:
    """Return the line of least squares without outliers; None where the points do not tell one."""
    for _ in range(3):
        count = len(x_N)
        if count < 4:
            return None
        x, y = x_N - x_N.sum() / count, y_N - y_N.sum() / count
        spread = float(x @ x)
        if spread <= 0:
            return None
        slope = float(x @ y) / spread
        off = y - slope * x
        sigma = max(math.sqrt(float(off @ off) / (count - 2)), LEAST_NOISE)
        distance = np.abs(off)
        # np.median takes several times as long, and this runs a hundred times a validation.
        usual = max(_TO_SIGMA * float(np.partition(distance, count // 2)[count // 2]), LEAST_NOISE)
        kept = distance <= _OUTLIER_SIGMAS * usual
        left = int(kept.sum())
        if left == count or left < 4:
            break
        x_N, y_N = x_N[kept], y_N[kept]
    return Trend(slope, sigma / math.sqrt(spread))


def holds(
    enters: Sequence[bool],
    leaves: Sequence[bool],
    *,
    times: int,
    at_once: Sequence[bool] = (),
    before: bool | None = None,
) -> bool:
    """Return whether a condition holds at the end: it begins after `times` in a row that enter, or one at once.

    It ends after `times` in a row that leave. What does neither changes nothing, so a value that wavers between the
    two thresholds does not make the condition come and go. With `before` only the end is looked at.
    """
    held, entering, leaving = False, 0, 0
    if before is not None:
        held, enters, leaves, at_once = before, enters[-times:], leaves[-times:], at_once[-times:]
    for index, (enter, leave) in enumerate(zip(enters, leaves, strict=True)):
        entering, leaving = (entering + 1 if enter else 0), (leaving + 1 if leave else 0)
        if entering >= times or (at_once and at_once[index]):
            held = True
        elif leaving >= times:
            held = False
    return held
