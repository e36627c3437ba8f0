"""Where a run's time went, as storage knows it. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from skywork_trainer.control import Spent
from skywork_trainer.curve import TimeRecord
from skywork_trainer.curves.run import Curve

_TRAINED = (Spent.TRAIN, Spent.DATA_WAIT)


class Worked(NamedTuple):
    """What a generation had spent by one moment."""

    incarnation: int
    generation: int
    time: float
    """Unix seconds."""
    spent: Mapping[str, float]
    """Seconds by Spent since its worker began."""
    counted: bool
    """False where the steps it had then trained since its record before were taken back."""


@dataclass(frozen=True)
class Accounts:
    """Seconds by Spent; together they are the wall time."""

    seconds: dict[str, float]

    @property
    def wall_seconds(self) -> float:
        """From the first worker's start to the newest record; time in which the run was deleted is left out."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """Part of the time in which steps were trained that count; None for a run that has none yet."""
        return self.seconds[Spent.TRAIN] / self.wall_seconds if self.wall_seconds > 0 else None


def worked(curve: Curve) -> list[Worked]:
    """Return what this run's own generations recorded; the run it was forked from paid for its part itself."""
    return [
        Worked(one.incarnation, one.record.generation, one.record.time, one.record.spent, one.counted)
        for one in curve.told
        if one.uri == curve.uri and isinstance(one.record, TimeRecord)
    ]


def account(records: Iterable[Worked]) -> Accounts:
    """Return all time from the first worker's start to the newest record, by what it went into.

    What no generation accounts for is idle: also steps behind a crash's last checkpoint, which leave no record. Trained
    steps that a rollback took back are lost; what a generation otherwise spent on them stays what it was.
    """
    incarnations: dict[int, dict[int, list[Worked]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        incarnations[record.incarnation][record.generation].append(record)
    seconds = {state.value: 0.0 for state in Spent}
    for generations in incarnations.values():
        begins, ends, known = [], [], 0.0
        for generation in generations.values():
            spent = _of_generation(generation)
            for state, value in spent.items():
                seconds[state] = seconds.get(state, 0.0) + value
            total = sum(spent.values())
            ends.append(max(record.time for record in generation))
            begins.append(ends[-1] - total)
            known += total
        # Clocks of two nodes may differ by more than the pause between their generations: then there was none.
        seconds[Spent.IDLE] += max(max(ends) - min(begins) - known, 0.0)
    return Accounts(seconds)


def _of_generation(records: list[Worked]) -> dict[str, float]:
    ordered = sorted(records, key=lambda record: record.time)
    spent = {state: max(value, 0.0) for state, value in ordered[-1].spent.items()}
    counted = next((record.spent for record in reversed(ordered) if record.counted), {})
    for state in _TRAINED:
        lost = max(spent.get(state, 0.0) - counted.get(state, 0.0), 0.0)
        spent[state] = spent.get(state, 0.0) - lost
        spent[Spent.LOST] = spent.get(Spent.LOST, 0.0) + lost
    return spent
