"""What every source of a stage is due after n sequences: the integrals of its shares, in exact integers.

A source that may be read only so often stops at its limit: its share goes to the others, in proportion to theirs at
that moment, so that every share stays a polynomial.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, floor, lcm
from typing import NamedTuple

from skywork_trainer.config import Stage
from skywork_trainer.data.errors import DataError
from skywork_trainer.shares import Piece, Polynomial, pieces, value

# Weights of exhausted shares are rounded so that the integers stay short; the last source takes what is left over.
_GRAIN = 10**9


class _Cubic(NamedTuple):
    """Due after n sequences: (constant + n (a + n (b + n c))) / unit, for n up to `last`."""

    last: int
    constant: Fraction
    a: Fraction
    b: Fraction
    c: Fraction

    def at(self, n: Fraction) -> Fraction:
        return self.constant + n * (self.a + n * (self.b + n * self.c))


class Dues:
    """The dues of one stage of `sequences` sequences; `left` says how many more of a source may be drawn at most."""

    def __init__(self, stage: Stage, sequences: int, left: Mapping[str, int] | None = None) -> None:
        """Raise DataError SourceExhausted when the sources run out before the stage ends."""
        self.sources = tuple(entry.source for entry in stage.mixture)
        self.sequences = sequences
        self._where = f"stages[{stage.name}].mixture"
        self.exhausted: dict[str, int] = {}
        """Sequence of the stage from which on a source is not drawn any more, by source."""
        cubics = self._integrate(pieces(stage.mixture, self._where), dict(left or {}))
        self._unit = lcm(*(part.denominator for row in cubics for cubic in row for part in cubic[1:]))
        self._lasts = [row[0].last for row in cubics]
        self._rows = [[_whole(cubic, self._unit) for cubic in row] for row in cubics]

    def rounded(self, entry: int, positions: range) -> tuple[list[int], list[int]]:
        """Return what entry number `entry` is due at each position, rounded down and rounded up."""
        down: list[int] = []
        up: list[int] = []
        unit, start = self._unit, positions.start
        while start < positions.stop:
            row = bisect_left(self._lasts, start)
            stop = min(positions.stop, self._lasts[row] + 1)
            constant, a, b, c = self._rows[row][entry]
            due = [constant + n * (a + n * (b + n * c)) for n in range(start, stop)]
            down += [x // unit for x in due]
            up += [-(-x // unit) for x in due]
            start = stop
        return down, up

    def _integrate(self, given: Sequence[Piece], left: dict[str, int]) -> list[list[_Cubic]]:
        rows: list[list[_Cubic]] = []
        due = [Fraction(0)] * len(self.sources)
        waiting = list(given)
        while waiting:
            piece = waiting.pop(0)
            row = [
                _integral(share, piece, before, self.sequences) for share, before in zip(piece.shares, due, strict=True)
            ]
            ran_out = self._first_to_run_out(row, piece, left)
            if ran_out is not None:
                cut, entry = ran_out
                del left[self.sources[entry]]
                self.exhausted[self.sources[entry]] = floor(cut * self.sequences)
                rest = [piece._replace(start=cut), *waiting] if cut < piece.end else waiting
                waiting = self._shared_out(entry, cut, rest)
                row = [cubic._replace(last=floor(cut * self.sequences)) for cubic in row]
                piece = piece._replace(end=cut)
            due = [cubic.at(piece.end * self.sequences) for cubic in row]
            if not rows or row[0].last > rows[-1][0].last:
                rows.append(row)
        return rows

    def _first_to_run_out(
        self, row: Sequence[_Cubic], piece: Piece, left: Mapping[str, int]
    ) -> tuple[Fraction, int] | None:
        """Return where in this piece the first source meets its limit, and which entry it is."""
        inside = range(ceil(piece.start * self.sequences), floor(piece.end * self.sequences) + 1)
        found = []
        for entry, cubic in enumerate(row):
            most = left.get(self.sources[entry])
            if most is None or cubic.at(piece.end * self.sequences) <= most:
                continue
            # A count is what is due, rounded up at most: so nothing beyond the limit may ever become due.
            fitting = bisect_left(inside, True, key=lambda n, c=cubic, m=most: c.at(Fraction(n)) > m)  # type: ignore[misc]
            found.append((Fraction(inside[fitting - 1], self.sequences) if fitting else piece.start, entry))
        return min(found, default=None)

    def _shared_out(self, entry: int, x: Fraction, rest: Sequence[Piece]) -> list[Piece]:
        """Return the pieces with the share of `entry` given to the others, in proportion to their shares at `x`."""
        if not rest:
            return []
        now = [value(share, x) if i != entry else Fraction(0) for i, share in enumerate(rest[0].shares)]
        if sum(now) <= 0:
            raise DataError(
                "SourceExhausted",
                f"{self._where}: {self.sources[entry]!r} is read to its epoch limit after {float(x):.1%} of the stage, "
                "and no other source of the mixture is left: raise sources[].epochs.max, add a source, or train fewer "
                "tokens",
            )
        weights = [Fraction(floor(part / sum(now) * _GRAIN), _GRAIN) for part in now]
        taker = max(range(len(now)), key=lambda i: now[i])
        weights[taker] += 1 - sum(weights)
        return [piece._replace(shares=_moved(piece.shares, entry, weights)) for piece in rest]


def _integral(share: Polynomial, piece: Piece, before: Fraction, sequences: int) -> _Cubic:
    """Return what is due inside a piece, `before` being due at its start: the share's integral over n / sequences."""
    a, b, c = share[0], share[1] / (2 * sequences), share[2] / (3 * sequences**2)
    start = piece.start * sequences
    return _Cubic(floor(piece.end * sequences), before - start * (a + start * (b + start * c)), a, b, c)


def _moved(shares: Sequence[Polynomial], entry: int, weights: Sequence[Fraction]) -> tuple[Polynomial, ...]:
    given = shares[entry]
    moved: list[Polynomial] = [
        (share[0] + weight * given[0], share[1] + weight * given[1], share[2] + weight * given[2])
        for share, weight in zip(shares, weights, strict=True)
    ]
    moved[entry] = (Fraction(0), Fraction(0), Fraction(0))
    return tuple(moved)


def _whole(cubic: _Cubic, unit: int) -> tuple[int, int, int, int]:
    return int(cubic.constant * unit), int(cubic.a * unit), int(cubic.b * unit), int(cubic.c * unit)
