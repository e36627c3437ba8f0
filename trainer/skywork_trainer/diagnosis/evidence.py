"""What detectors look at: the recorded curve and the plan it belongs to, as plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from skywork_trainer import schedule
from skywork_trainer.config import CurvePoint, Diagnosis, Guards, RunConfig, Schedule, Shape, Stage


class RecentStep(NamedTuple):
    """One step that is done."""

    step: int
    """Steps of the run that are done with this one."""
    loss: float
    seconds: float
    """Of training it; neither validation nor standing still for a save is part of it."""
    wait_seconds: float = 0.0
    """Of those, waited for data."""


@dataclass(frozen=True)
class StageSpan:
    """Steps [first, last) of one stage, and what detectors must know of its plan."""

    name: str
    first: int
    last: int
    warm: int = 0
    """First step behind the warm-up of the learning rate."""
    peak_rate: float = 0.0
    final_rate: float = 0.0
    schedule: Schedule = Schedule.CONSTANT
    steady_mixture: bool = True
    """Whether the sources' shares stay as they are from the stage's first step to its last."""


@dataclass(frozen=True)
class Evidence:
    """Everything that is known when diagnoses are made."""

    stages: tuple[StageSpan, ...]
    """In order; not empty."""
    stage: str
    """The one that trains."""
    step: int
    """Steps of the run that are done."""
    tokens_per_step: int
    points: tuple[CurvePoint, ...] = ()
    """The run's validations, thinned out, in order."""
    steps: tuple[RecentStep, ...] = ()
    """The newest few hundred in order, those of earlier generations that still count among them."""
    generation_step: int = 0
    """Step this generation goes on behind: of the world before are recent steps up to it."""
    best_step_seconds: float | None = None
    """The least `sustained_seconds` of this generation so far."""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """How often the run has read each source."""
    guards: Guards = field(default_factory=Guards)
    learning_rate: float = 0.0
    domains: tuple[str, ...] = ()
    """Those that are to be measured."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """Why the newest validation could not measure a domain, by domain."""
    cut: tuple[str, ...] = ()
    """Domains that the newest validation's time budget left for the next one."""
    before: tuple[Diagnosis, ...] = ()
    """What was said last time, where that is known: what hangs in the balance stays as it was."""

    def found_before(self, type_: str) -> bool | None:
        """Return what was said of a condition last time; None where nothing was."""
        return next((each.found for each in self.before if each.type == type_), None)

    @cached_property
    def stage_index(self) -> int:
        """Position of the stage that trains; the last one where its name is not known."""
        names = [stage.name for stage in self.stages]
        return names.index(self.stage) if self.stage in names else len(names) - 1

    @property
    def span(self) -> StageSpan:
        """The stage that trains."""
        return self.stages[self.stage_index]

    @cached_property
    def stage_points(self) -> tuple[CurvePoint, ...]:
        """Validations of the stage that trains."""
        return tuple(point for point in self.points if point.stage == self.span.name)

    @property
    def planned_steps(self) -> int:
        """Steps of the run as far as it is planned."""
        return max(self.stages[-1].last, self.step, 1)


def gather(
    config: RunConfig,
    *,
    step: int,
    points: Sequence[CurvePoint],
    steps: Sequence[RecentStep],
    generation_step: int,
    best_step_seconds: float | None = None,
    epochs: Mapping[str, float] | None = None,
    unmeasured: Mapping[str, str] | None = None,
    cut: Sequence[str] = (),
    before: Sequence[Diagnosis] = (),
) -> Evidence:
    """Return the evidence of a run that has done `step` steps, with what its configuration says of the plan."""
    return Evidence(
        stages=tuple(_span(config, index) for index in range(len(config.stages))),
        stage=schedule.stage_of_step(config, step).name
        if step < config.stage_steps(config.stage_index).start
        else config.stage,
        step=step,
        tokens_per_step=config.global_batch_tokens,
        points=tuple(points),
        steps=tuple(steps),
        generation_step=generation_step,
        best_step_seconds=best_step_seconds,
        epochs=dict(epochs or {}),
        guards=config.guards,
        learning_rate=schedule.learning_rate(config, max(step - 1, 0)),
        domains=tuple(domain.name for domain in config.validation.domains),
        unmeasured=dict(unmeasured or {}),
        cut=tuple(cut),
        before=tuple(before),
    )


def _span(config: RunConfig, index: int) -> StageSpan:
    stage, steps = config.stages[index], config.stage_steps(index)
    warmup = math.ceil(stage.learning_rate.warmup_tokens / config.global_batch_tokens)
    final = schedule.terminal_rate(config, index)
    return StageSpan(
        name=stage.name,
        first=steps.start,
        last=steps.stop,
        warm=min(steps.start + warmup, steps.stop),
        peak_rate=stage.learning_rate.peak or schedule.learning_rate(config, steps.start),
        final_rate=final,
        schedule=stage.learning_rate.schedule,
        steady_mixture=_is_steady(stage),
    )


def _is_steady(stage: Stage) -> bool:
    shares = [entry.share for entry in stage.mixture if entry.share is not None]
    return all(
        len({point.share for point in share.points}) == 1
        if share.points
        else share.shape is Shape.CONSTANT or share.start == share.end
        for share in shares
    )
