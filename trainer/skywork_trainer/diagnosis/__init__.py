"""What the curve of a run means: one small detector a condition, pure functions of what was recorded.

    evidence = gather(config, step=…, points=…, steps=…, generation_step=…, before=diagnoses, …)
    diagnoses = diagnose(evidence)

`diagnose` runs all of DETECTORS. Each returns a Diagnosis, or None while it has not seen enough to say anything: then
the condition should be absent. Nothing is remembered between two calls but what the caller passes as `before`; without
that, behind a restart, it is worked out from the curve whether a condition began (`series.holds`).

CURVE_DETECTORS look at the validations of the stage that trains and change with a new point only; STEP_DETECTORS look
at the newest steps. All together take milliseconds: run them after a validation, and the latter every so many seconds;
then `before` is still all that is said.

What the caller keeps:
  points             `thinned((*points, curve_point(…)))` after each validation; `curve_points(records)` reads them back
  steps              a deque of the newest RECENT_STEPS; those of older generations that still count may stay in it
  best_step_seconds  the least `sustained_seconds(steps, generation_step)` of this generation; None at its beginning
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from skywork_trainer.config import Diagnosis
from skywork_trainer.diagnosis.data_starved import data_starved
from skywork_trainer.diagnosis.domains_diverging import domains_diverging
from skywork_trainer.diagnosis.evidence import Evidence, RecentStep, StageSpan, gather
from skywork_trainer.diagnosis.forgetting import forgetting
from skywork_trainer.diagnosis.gap_growing import gap_growing
from skywork_trainer.diagnosis.loss_spiking import loss_spiking
from skywork_trainer.diagnosis.pace import sustained_seconds
from skywork_trainer.diagnosis.plateau import plateau
from skywork_trainer.diagnosis.points import MOST_POINTS, curve_point, curve_points, thinned
from skywork_trainer.diagnosis.throughput_low import throughput_low
from skywork_trainer.diagnosis.validation_incomplete import validation_incomplete

__all__ = [
    "CURVE_DETECTORS",
    "DETECTORS",
    "MOST_POINTS",
    "RECENT_STEPS",
    "STEP_DETECTORS",
    "Detector",
    "Evidence",
    "RecentStep",
    "StageSpan",
    "curve_point",
    "curve_points",
    "diagnose",
    "gather",
    "sustained_seconds",
    "thinned",
]

RECENT_STEPS = 512
"""Enough for any window that detectors look at, and for three of the default `guards.window_steps`."""

Detector: TypeAlias = Callable[[Evidence], Diagnosis | None]
CURVE_DETECTORS: tuple[Detector, ...] = (domains_diverging, forgetting, plateau, gap_growing, validation_incomplete)
STEP_DETECTORS: tuple[Detector, ...] = (loss_spiking, data_starved, throughput_low)
DETECTORS: tuple[Detector, ...] = (*CURVE_DETECTORS, *STEP_DETECTORS)


def diagnose(evidence: Evidence, detectors: Sequence[Detector] = DETECTORS) -> tuple[Diagnosis, ...]:
    """Return what every detector says that has seen enough; raises nothing, whatever the losses are."""
    with np.errstate(all="ignore"):
        return tuple(found for detector in detectors if (found := detector(evidence)) is not None)
