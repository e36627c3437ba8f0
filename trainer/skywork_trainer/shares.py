"""How the sources of a stage share its sequences: piecewise polynomials of the fraction x of the stage, summing to 1.

Kept apart from the draws that follow from them, so that the operator can refuse a wrong mixture before it takes a
single node.
"""

from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_TOLERANCE = Fraction(1, 10**9)
Polynomial = tuple[Fraction, Fraction, Fraction]
"""(c0, c1, c2): the share c0 + c1 x + c2 x^2."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(StrEnum):
    """How a source's share moves from its first to its last value, x being the fraction of the stage trained."""

    CONSTANT = "Constant"
    LINEAR = "Linear"
    QUADRATIC = "Quadratic"


class Point(_Frozen):
    """A breakpoint: the share when the fraction `at` of the stage is trained."""

    at: Annotated[float, Field(ge=0, le=1)]
    share: Annotated[float, Field(ge=0, le=1)]


class Share(_Frozen):
    """Share of a stage's sequences drawn from one source.

    `start` + (`end` - `start`) * x, or x squared; or straight lines between `points`, level before the first and after
    the last of them.
    """

    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    shape: Shape = Shape.CONSTANT
    points: tuple[Point, ...] = ()

    @model_validator(mode="after")
    def _points_rise(self) -> Self:
        if any(left.at >= right.at for left, right in pairwise(self.points)):
            raise ValueError(f"share.points[].at must rise, got {[point.at for point in self.points]}")
        return self


class MixtureEntry(_Frozen):
    """One source of a mixture; the single entry without a share takes what the others leave."""

    source: str
    share: Share | None = None


class Piece(NamedTuple):
    """The shares of all entries between two breakpoints."""

    start: Fraction
    end: Fraction
    shares: tuple[Polynomial, ...]


# The operator validates every run at every pass, and large mixtures with many breakpoints take a tenth of a second.
@lru_cache(maxsize=256)
def pieces(mixture: tuple[MixtureEntry, ...], where: str) -> tuple[Piece, ...]:
    """Return the mixture's shares, which add up to exactly 1 for every x; ValueError naming `where` if they cannot."""
    names = [entry.source for entry in mixture]
    if len(set(names)) < len(names):
        raise ValueError(f"{where} names a source twice: {', '.join(names)}")
    if sum(entry.share is None for entry in mixture) > 1:
        raise ValueError(f"{where}: only one source may go without a share")
    inner = {exact(point.at) for entry in mixture if entry.share for point in entry.share.points}
    edges = sorted(inner | {Fraction(0), Fraction(1)})
    return tuple(_piece(mixture, start, end, where) for start, end in pairwise(edges))


def value(share: Polynomial, x: Fraction) -> Fraction:
    """Return the share at x."""
    return share[0] + x * (share[1] + x * share[2])


def exact(number: float) -> Fraction:
    """Return what the user wrote: the shortest decimal of the float, not its exact binary value."""
    return Fraction(repr(float(number)))


def _piece(mixture: Sequence[MixtureEntry], start: Fraction, end: Fraction, where: str) -> Piece:
    given = [_polynomial(entry.share, start, end) if entry.share else None for entry in mixture]
    sums = [sum((share[power] for share in given if share), Fraction(0)) for power in range(3)]
    rest = (1 - sums[0], -sums[1], -sums[2])
    lowest = min(value(rest, x) for x in _extremes(rest, start, end))
    without_share = [i for i, share in enumerate(given) if share is None]
    if lowest < -_TOLERANCE or (not without_share and max(abs(part) for part in rest) > _TOLERANCE):
        raise ValueError(
            f"{where}: the shares add up to {float(1 - lowest):g} at their highest, not to 1 throughout: give the "
            "sources that trade places the same shape, or leave one source without a share"
        )
    # Without an entry for the rest, the last one takes the rounding of decimal strings to binary floats.
    taker = without_share[0] if without_share else len(given) - 1
    others = [share for i, share in enumerate(given) if share and i != taker]
    left = tuple(int(power == 0) - sum((share[power] for share in others), Fraction(0)) for power in range(3))
    shares = tuple((left[0], left[1], left[2]) if i == taker or not share else share for i, share in enumerate(given))
    return Piece(start, end, shares)


def _polynomial(share: Share, start: Fraction, end: Fraction) -> Polynomial:
    if share.points:
        return _line(share.points, start, end)
    first, last = exact(share.start), exact(share.end)
    if share.shape is Shape.LINEAR:
        return first, last - first, Fraction(0)
    if share.shape is Shape.QUADRATIC:
        return first, Fraction(0), last - first
    return first, Fraction(0), Fraction(0)


def _line(points: Sequence[Point], start: Fraction, end: Fraction) -> Polynomial:
    """Return the straight line through the share's values at a piece's two ends."""
    left, right = _interpolated(points, start), _interpolated(points, end)
    slope = (right - left) / (end - start)
    return left - slope * start, slope, Fraction(0)


def _interpolated(points: Sequence[Point], x: Fraction) -> Fraction:
    if x <= exact(points[0].at):
        return exact(points[0].share)
    for left, right in pairwise(points):
        if x <= exact(right.at):
            part = (x - exact(left.at)) / (exact(right.at) - exact(left.at))
            return exact(left.share) + part * (exact(right.share) - exact(left.share))
    return exact(points[-1].share)


def _extremes(share: Polynomial, start: Fraction, end: Fraction) -> list[Fraction]:
    turn = -share[1] / (2 * share[2]) if share[2] else start
    return [start, end, turn] if start < turn < end else [start, end]
