"""Which source each sequence of a run is drawn from: a pure function of the plan, in O(1) for any sequence number.

A share is a polynomial of the fraction of its stage, so what a source is due after j sequences has a closed form,
kept in exact integers. A stage is cut into blocks. At a block's edge every source holds what it is due, rounded
down or up; inside, each draw goes to the source whose next one is needed soonest. Tijdeman's chairman assignment
theorem says that some rounding always leaves every source, at every sequence, less than one away from its due;
`_edge` finds it by Hall's condition, which needs one block to either side and no history.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, combinations
from math import lcm
from typing import NamedTuple

from skywork_trainer.config import MixtureEntry, RunConfig, Shape, Stage
from skywork_trainer.data.errors import DataError

BLOCK_SEQUENCES = 1024
_TOLERANCE = Fraction(1, 10**9)
_Polynomial = tuple[Fraction, Fraction, Fraction]


class Draw(NamedTuple):
    """One sequence's place in the plan."""

    stage: int
    source: str
    nth: int
    """How many sequences of this source the run has drawn before it."""


class Plan:
    """The draws of a whole run; editing a later stage never changes an earlier one's."""

    def __init__(self, config: RunConfig) -> None:
        """Check that every mixture adds up throughout its stage; raises DataError MixtureInvalid."""
        self._stages = [
            StagePlan(stage, len(config.stage_steps(index)) * config.global_batch_sequences)
            for index, stage in enumerate(config.stages)
        ]
        self._starts = list(accumulate((stage.sequences for stage in self._stages), initial=0))
        # Counts at a stage's start come from the stages before it, so draws go on and nothing is repeated.
        self._drawn_before = lru_cache(maxsize=None)(self._count_before)

    def draw(self, sequence: int) -> Draw:
        """Return where sequence `sequence` of the run comes from; IndexError beyond the last stage."""
        stage = self.stage_of(sequence)
        source, count = self._stages[stage].draw(sequence - self._starts[stage])
        return Draw(stage, source, self._drawn_before(stage).get(source, 0) + count)

    def stage_of(self, sequence: int) -> int:
        """Return the stage that trains sequence `sequence`."""
        if not 0 <= sequence < self._starts[-1]:
            raise IndexError(f"sequence {sequence} is outside the run's {self._starts[-1]}")
        return bisect_left(self._starts, sequence + 1) - 1

    def drawn(self, stage: int, sequence: int) -> dict[str, int]:
        """Return how many sequences of each source stage `stage` draws before sequence `sequence` of the run."""
        plan = self._stages[stage]
        return plan.drawn(min(max(sequence - self._starts[stage], 0), plan.sequences))

    def reached(self, sequence: int) -> int:
        """Return how many stages have begun when sequences [0, sequence) are trained."""
        return bisect_left(self._starts[:-1], sequence)

    def _count_before(self, stage: int) -> dict[str, int]:
        if stage == 0:
            return {}
        counts = dict(self._drawn_before(stage - 1))
        for source, count in self._stages[stage - 1].drawn(self._stages[stage - 1].sequences).items():
            counts[source] = counts.get(source, 0) + count
        return counts


class StagePlan:
    """The draws of one stage of `sequences` sequences, numbered from 0."""

    def __init__(self, stage: Stage, sequences: int) -> None:
        self.sources = tuple(entry.source for entry in stage.mixture)
        self.sequences = sequences
        if len(set(self.sources)) < len(self.sources):
            raise DataError("MixtureInvalid", f"stages[{stage.name}].mixture names a source twice: {self.sources}")
        shares = _shares(stage)
        self._unit = _denominator(shares) * 6 * sequences**2
        self._coefficients = [_due_coefficients(share, sequences, self._unit) for share in shares]
        self._block = lru_cache(maxsize=64)(self._draw_block)
        self._edge = lru_cache(maxsize=256)(self._round_edge)
        self._due = lru_cache(maxsize=8)(self._due_in_block)

    def draw(self, sequence: int) -> tuple[str, int]:
        """Return the source of a sequence, and how many the stage has drawn from it before."""
        entry, count = self._block(sequence // BLOCK_SEQUENCES)[sequence % BLOCK_SEQUENCES]
        return self.sources[entry], count

    def drawn(self, sequence: int) -> dict[str, int]:
        """Return how many of the first `sequence` sequences come from each source."""
        block = sequence // BLOCK_SEQUENCES
        if sequence == self.sequences:
            counts = list(self._edge(sequence))
        else:
            counts = list(self._edge(block * BLOCK_SEQUENCES))
            for entry, _ in self._block(block)[: sequence % BLOCK_SEQUENCES]:
                counts[entry] += 1
        return dict(zip(self.sources, counts, strict=True))

    def _draw_block(self, block: int) -> list[tuple[int, int]]:
        """Draw by earliest deadline between the counts at the block's edges: (entry, its count before) per sequence."""
        due = self._due(block)
        start = block * BLOCK_SEQUENCES
        size = len(due[0].down) - 1
        counts = list(self._edge(start))
        last = self._edge(start + size)
        drawn = []
        for at in range(1, size + 1):
            ready = (i for i in range(len(counts)) if counts[i] < min(due[i].up[at], last[i]))
            entry = min(ready, key=lambda i: bisect_left(due[i].down, counts[i] + 1))
            drawn.append((entry, counts[entry]))
            counts[entry] += 1
        return drawn

    def _round_edge(self, position: int) -> tuple[int, ...]:
        """Round what is due at a block's edge so that both blocks beside it can keep every source within one."""
        before = self._due(position // BLOCK_SEQUENCES - 1) if position else None
        if position == self.sequences and position % BLOCK_SEQUENCES:
            before = self._due(position // BLOCK_SEQUENCES)
        after = self._due(position // BLOCK_SEQUENCES) if position < self.sequences else None
        if before is None:
            return (0,) * len(self.sources)
        down = [due.down[-1] for due in before]
        open_entries = [i for i, due in enumerate(before) if due.up[-1] > due.down[-1]]
        if after is not None:
            open_entries.sort(key=lambda i: bisect_left(after[i].down, down[i] + 1))
        for chosen in combinations(open_entries, position - sum(down)):
            counts = tuple(count + (i in chosen) for i, count in enumerate(down))
            if (after is None or _can_follow(counts, after)) and _can_precede(counts, before):
                return counts
        raise AssertionError("no rounding keeps every source within one of its due, against the theorem")

    def _due_in_block(self, block: int) -> list["_Due"]:
        start = block * BLOCK_SEQUENCES
        positions = range(start, min(start + BLOCK_SEQUENCES, self.sequences) + 1)
        return [_Due.at(positions, coefficients, self._unit) for coefficients in self._coefficients]


@dataclass(frozen=True)
class _Due:
    """What a source is due at each position of a block, rounded down and up."""

    down: list[int]
    up: list[int]

    @classmethod
    def at(cls, positions: Sequence[int], coefficients: tuple[int, int, int], unit: int) -> "_Due":
        a, b, c = coefficients
        due = [n * (a + n * (b + n * c)) for n in positions]
        return cls([x // unit for x in due], [-(-x // unit) for x in due])


def _can_follow(counts: Sequence[int], after: Sequence[_Due]) -> bool:
    """Up to every position behind the edge there are at least as many draws as have become overdue."""
    size = len(after[0].down)
    return all(
        sum(max(0, due.down[at] - count) for due, count in zip(after, counts, strict=True)) <= at for at in range(size)
    )


def _can_precede(counts: Sequence[int], before: Sequence[_Due]) -> bool:
    """From every position before the edge there are at least as many draws as were not allowed earlier."""
    size = len(before[0].up)
    return all(
        sum(max(0, count - due.up[-1 - at]) for due, count in zip(before, counts, strict=True)) <= at
        for at in range(size)
    )


def _shares(stage: Stage) -> list[_Polynomial]:
    """Return each entry's share as a polynomial of x; they add up to exactly 1 for every x."""
    given = [_polynomial(entry) for entry in stage.mixture]
    sums = [sum((share[power] for share in given if share), Fraction(0)) for power in range(3)]
    rest = (1 - sums[0], -sums[1], -sums[2])
    lowest = min(_value(rest, x) for x in _extremes(rest))
    without_share = [i for i, share in enumerate(given) if share is None]
    if lowest < -_TOLERANCE or (not without_share and max(abs(part) for part in rest) > _TOLERANCE):
        raise DataError(
            "MixtureInvalid",
            f"stages[{stage.name}].mixture: the shares add up to {float(1 - lowest):g} at their highest, not to 1 "
            "throughout: give the sources that trade places the same shape, or leave one source without a share",
        )
    # Without an entry for the rest, the last one takes the rounding of decimal strings to binary floats.
    taker = without_share[0] if without_share else len(given) - 1
    own = given[taker] or (Fraction(0),) * 3
    given[taker] = (own[0] + rest[0], own[1] + rest[1], own[2] + rest[2])
    return [share for share in given if share is not None]


def _polynomial(entry: MixtureEntry) -> _Polynomial | None:
    if entry.share is None:
        return None
    # The shortest decimal of the float is what the user wrote; its exact binary value is not.
    start, end = Fraction(repr(entry.share.start)), Fraction(repr(entry.share.end))
    moves = {Shape.CONSTANT: (Fraction(0), Fraction(0)), Shape.LINEAR: (end - start, Fraction(0))}
    linear, quadratic = moves.get(entry.share.shape, (Fraction(0), end - start))
    return start, linear, quadratic


def _value(share: _Polynomial, x: Fraction) -> Fraction:
    return share[0] + x * (share[1] + x * share[2])


def _extremes(share: _Polynomial) -> list[Fraction]:
    ends = [Fraction(0), Fraction(1)]
    turn = -share[1] / (2 * share[2]) if share[2] else Fraction(0)
    return [*ends, turn] if 0 < turn < 1 else ends


def _denominator(shares: Sequence[_Polynomial]) -> int:
    return lcm(*(part.denominator for share in shares for part in share))


def _due_coefficients(share: _Polynomial, sequences: int, unit: int) -> tuple[int, int, int]:
    """Return (a, b, c) with due(n) = (a n + b n^2 + c n^3) / unit: the share's integral over n of `sequences`."""
    return (
        int(share[0] * unit),
        int(share[1] * unit / (2 * sequences)),
        int(share[2] * unit / (3 * sequences**2)),
    )
