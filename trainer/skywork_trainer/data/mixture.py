"""Which source each sequence of a run is drawn from: a pure function of the plan, in O(1) for any sequence number.

A share is a piecewise polynomial of the fraction of its stage, so what a source is due after j sequences has a closed
form, kept in exact integers (`due.py`). A stage is cut into blocks. At a block's edge every source holds what it is
due, rounded down or up; inside, each draw goes to the source whose next one is needed soonest. Tijdeman's chairman
assignment theorem says that some rounding always leaves every source, at every sequence, less than one away from its
due; `_edge` finds it by Hall's condition, which needs one block to either side and no history.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations
from typing import NamedTuple

from skywork_trainer.config import BeyondLimit, RunConfig, Source, Stage
from skywork_trainer.data.due import Dues
from skywork_trainer.data.errors import DataError

BLOCK_SEQUENCES = 1024
MANY_EPOCHS = 5
"""More passes over one source than these are worth a warning (Skywork-13B report, section 3.1)."""


class Draw(NamedTuple):
    """One sequence's place in the plan."""

    stage: int
    source: str
    nth: int
    """How many sequences of this source the run has drawn before it."""


class Plan:
    """The draws of a whole run; editing a later stage never changes an earlier one's."""

    def __init__(self, config: RunConfig, sizes: Mapping[str, int] | None = None) -> None:
        """Plan every stage; `sizes` are sequences by source, needed where a source has an epoch limit.

        Raises DataError SourceExhausted when a limit leaves a stage without data.
        """
        self._limits = _limits(config.sources, sizes or {})
        self._sizes = dict(sizes or {})
        self._stages: list[StagePlan] = []
        # Counts at a stage's start come from the stages before it, so draws go on and nothing is repeated.
        self._before: list[dict[str, int]] = [{}]
        for index, stage in enumerate(config.stages):
            sequences = len(config.stage_steps(index)) * config.global_batch_sequences
            before = self._before[-1]
            left = {
                name: most - before.get(name, 0)
                for name, (most, beyond) in self._limits.items()
                if beyond is BeyondLimit.RENORMALIZE
            }
            plan = StagePlan(stage, sequences, left)
            self._stages.append(plan)
            drawn = plan.drawn(sequences)
            self._before.append({name: before.get(name, 0) + drawn.get(name, 0) for name in before | drawn})
            self._check_limits(stage)
        self._starts = list(accumulate((stage.sequences for stage in self._stages), initial=0))

    def draw(self, sequence: int) -> Draw:
        """Return where sequence `sequence` of the run comes from; IndexError beyond the last stage."""
        stage = self.stage_of(sequence)
        source, count = self._stages[stage].draw(sequence - self._starts[stage])
        return Draw(stage, source, self._before[stage].get(source, 0) + count)

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

    def epochs(self, sequence: int) -> dict[str, float]:
        """Return how often every source is read by the sequences [0, sequence) of the run."""
        stage = min(self.reached(sequence), len(self._stages)) - 1
        counts = dict(self._before[max(stage, 0)])
        for name, count in (self.drawn(stage, sequence) if stage >= 0 else {}).items():
            counts[name] = counts.get(name, 0) + count
        return {name: count / self._sizes[name] for name, count in counts.items() if self._sizes.get(name)}

    def warnings(self, stage: int) -> tuple[str, ...]:
        """Return what a person should know about the sources of one stage, in a sentence each."""
        name = self._stages[stage].name
        told = [
            f"source {source!r} ends after {at / self._stages[stage].sequences:.1%} of stage {name!r}: it has been "
            "read as often as its epoch limit allows, and the other sources take its share"
            for source, at in self._stages[stage].exhausted.items()
        ]
        for source, epochs in self.epochs(self._starts[stage + 1]).items():
            limit = self._limits.get(source, (MANY_EPOCHS * self._sizes[source], BeyondLimit.REPEAT))[0]
            most = min(limit / self._sizes[source], MANY_EPOCHS)
            if source in self._stages[stage].sources and epochs > most:
                told.append(
                    f"source {source!r} will have been read {epochs:.2f} times by the end of stage {name!r}, more "
                    f"than {most:g}: the held-out losses show whether it still teaches anything"
                )
        return tuple(told)

    def _check_limits(self, stage: Stage) -> None:
        for name, (most, beyond) in self._limits.items():
            drawn = self._before[-1].get(name, 0)
            if beyond is BeyondLimit.FAIL and drawn > most:
                raise DataError(
                    "SourceExhausted",
                    f"source {name!r} would be read {drawn / self._sizes[name]:.2f} times by the end of stage "
                    f"{stage.name!r}; sources[].epochs allows {most // self._sizes[name]}, beyond: Fail. Lower its "
                    "share or the stage's tokens, add data, or set beyond to Repeat or Renormalize",
                )


def _limits(sources: Sequence[Source], sizes: Mapping[str, int]) -> dict[str, tuple[int, BeyondLimit]]:
    """Return the most sequences that may be drawn of every source with an epoch limit, and what happens beyond."""
    return {
        source.name: (source.max_epochs * sizes[source.name], source.beyond_limit)
        for source in sources
        if source.max_epochs is not None and source.name in sizes
    }


class StagePlan:
    """The draws of one stage of `sequences` sequences, numbered from 0."""

    def __init__(self, stage: Stage, sequences: int, left: Mapping[str, int] | None = None) -> None:
        self._dues = Dues(stage, sequences, left)
        self.name, self.sources, self.sequences = stage.name, self._dues.sources, sequences
        self.exhausted = self._dues.exhausted
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
        return [_Due(*self._dues.rounded(entry, positions)) for entry in range(len(self.sources))]


@dataclass(frozen=True)
class _Due:
    """What a source is due at each position of a block, rounded down and up."""

    down: list[int]
    up: list[int]


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
