"""A run as it counts: every step once, with what was measured on the way."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from skywork_trainer.curve import EventRecord, GenerationRecord, MixtureRecord, StepRecord, TimeRecord, ValidationRecord
from skywork_trainer.guards import Rollback

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """Columns of equal length, one row a step; a float is not a number where nobody knows it."""

    step: Integers
    """Strictly increasing: steps of the run that are done with this one."""
    stage: Integers
    """Index of Curve.stages."""
    time: Floats
    """Unix seconds at its end."""
    loss: Floats
    rate: Floats
    norm: Floats
    seconds: Floats
    wait_seconds: Floats

    def __len__(self) -> int:
        return len(self.step)


FLOATS = ("time", "loss", "rate", "norm", "seconds", "wait_seconds")
"""Columns that are named alike in StepRecord."""


class StageSpan(NamedTuple):
    """Steps (first_step, last_step] of a stage, as far as the curve reaches."""

    name: str
    """Empty for steps of which only the loss is known."""
    first_step: int
    last_step: int


class Fork(NamedTuple):
    """Where one run begins with another's checkpoint."""

    step: int
    uri: str
    """Of the checkpoint."""


class Told(NamedTuple):
    """A record that is about time and generations, and whose it is."""

    uri: str
    """Folder of the run that wrote it: a fork's curve has the other run's, too."""
    incarnation: int
    """Generations count anew when a run is deleted and applied again."""
    counted: bool
    """False for what was trained and then taken back."""
    record: GenerationRecord | TimeRecord | EventRecord


@dataclass(frozen=True)
class Curve:
    """What storage tells of one run, up to its newest checkpoint."""

    uri: str
    run: str
    checkpoint: str
    """Id of the newest checkpoint."""
    step: int
    """Its step: what was trained behind it is not in storage."""
    global_batch_tokens: int
    steps: Steps
    stages: tuple[StageSpan, ...]
    validations: tuple[ValidationRecord, ...] = ()
    """In order; at most one for a step of a stage."""
    mixtures: tuple[MixtureRecord, ...] = ()
    told: tuple[Told, ...] = ()
    """In order of time."""
    rollbacks: tuple[Rollback, ...] = ()
    forks: tuple[Fork, ...] = ()
    """Oldest first."""
    notes: tuple[str, ...] = field(default=())
    """What a reader should know about what is missing."""

    @property
    def tokens(self) -> int:
        """Tokens trained."""
        return self.step * self.global_batch_tokens

    @property
    def generations(self) -> tuple[GenerationRecord, ...]:
        """Generations that this run had and that saved something, also of steps that were taken back."""
        own = [one.record for one in self.told if one.uri == self.uri]
        return tuple(record for record in own if isinstance(record, GenerationRecord))

    @property
    def events(self) -> tuple[EventRecord, ...]:
        """What happened to this run, also on the way to steps that were taken back."""
        own = [one.record for one in self.told if one.uri == self.uri]
        return tuple(record for record in own if isinstance(record, EventRecord))


def columns(records: list[StepRecord], stages: dict[str, int]) -> Steps:
    """Return the records as columns; `stages` numbers the names of stages and takes in new ones."""
    table = np.array([[getattr(record, name) for name in FLOATS] for record in records], dtype=np.float64)
    floats = dict(zip(FLOATS, table.reshape(len(records), len(FLOATS)).T, strict=True))
    return Steps(
        step=np.array([record.step for record in records], dtype=np.int64),
        stage=np.array([stages.setdefault(record.stage, len(stages)) for record in records], dtype=np.int64),
        **floats,
    )


def joined(parts: list[Steps]) -> Steps:
    """Return the rows of all parts, in the order given."""
    names = ("step", "stage", *FLOATS)
    if not parts:
        return columns([], {})
    return Steps(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def spans(steps: Steps, names: list[str]) -> tuple[StageSpan, ...]:
    """Return the stages in the order in which they were trained."""
    if not len(steps):
        return ()
    edges = [0, *(np.flatnonzero(np.diff(steps.stage)) + 1).tolist(), len(steps)]
    return tuple(
        StageSpan(names[steps.stage[low]], int(steps.step[low]) - 1, int(steps.step[high - 1]))
        for low, high in pairwise(edges)
    )
