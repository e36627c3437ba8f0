"""The average over the domains no longer falls: the learning rate, or the data, is exhausted.

The pace is that of the latter half of what the stage has trained, a line through all its points, and is told as what as
many tokens as the whole run is planned for would bring. A run that does not level off brings several times the
threshold, up to the end of its cosine; a short stage at the end of a long run is not judged.
"""

from dataclasses import dataclass

from skywork_trainer.config import Diagnosis, Schedule
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.series import Floats, aligned, holds, trend
from skywork_trainer.diagnosis.wording import repeated, times_read, tokens

TYPE = "Plateau"
LEAST_FALL = 0.02
"""Nats per token for as many tokens as the run is planned for: less is a plateau."""
CERTAIN_FALL = 0.05
"""Twice its own error included, a plateau stays below."""
MOST_ERROR = 0.025
"""Of the pace; behind more noise nothing is claimed, unless the pace is below LEAST_FALL by SIGMAS of it."""
SIGMAS = 4.0
LEAST_STRETCH = 0.05
"""Of the run's planned tokens; a shorter stretch tells nothing."""
LEAST_POINTS = 6
LASTING_POINTS = 3
REPLAYED_POINTS = 32
SEVERAL_EPOCHS = 2.0
_AT_FLOOR = 1.05


@dataclass(frozen=True)
class _Pace:
    fall: float
    """Nats per token, for as many tokens as the run is planned for."""
    error: float
    since: float
    """Step."""
    last: float

    @property
    def enters(self) -> bool:
        told = self.fall + 2 * self.error < CERTAIN_FALL and self.error < MOST_ERROR
        sure = self.fall + SIGMAS * self.error < LEAST_FALL
        return self.fall < LEAST_FALL and (told or sure)

    @property
    def leaves(self) -> bool:
        return self.fall - 2 * self.error > LEAST_FALL


def plateau(evidence: Evidence) -> Diagnosis | None:
    """Return whether the average has levelled off; None while the stage has trained too little to tell."""
    names, steps_N, losses_DN = aligned(evidence.stage_points)
    if not names:
        return None
    average_N, count = losses_DN.mean(axis=0), len(steps_N)
    paces = [
        _pace(steps_N[:seen], average_N[:seen], evidence)
        for seen in range(max(count - REPLAYED_POINTS, 0) + 1, count + 1)
    ]
    pace = paces[-1]
    if pace is None:
        return None
    known = [each for each in paces if each is not None]
    found = holds(
        [each.enters for each in known],
        [each.leaves for each in known],
        times=LASTING_POINTS,
        before=evidence.found_before(TYPE),
    )
    stretch = tokens((pace.last - pace.since) * evidence.tokens_per_step)
    evidently = (
        f"over the last {stretch} the average of {len(names)} domains fell at a pace of {pace.fall:.3f} +- "
        f"{pace.error:.3f} nats per {tokens(evidence.planned_steps * evidence.tokens_per_step)}"
    )
    if not found:
        return Diagnosis(type=TYPE, found=False, reason="Improving", message=f"No plateau: {evidently}.")
    reason, advice = _exhausted(evidence)
    message = f"It levels off: {evidently}; less than {LEAST_FALL:g} is a plateau. {advice}"
    return Diagnosis(type=TYPE, found=True, reason=reason, message=message)


def _pace(steps_N: Floats, average_N: Floats, evidence: Evidence) -> _Pace | None:
    span, scale, now = evidence.span, evidence.planned_steps, float(steps_N[-1])
    begin = min((span.first + now) / 2, now - LEAST_STRETCH * scale)
    late_N = steps_N >= begin
    # A warm-up raises the loss, and what falls behind it is the way back.
    if begin < max(span.first, span.warm) or late_N.sum() < LEAST_POINTS:
        return None
    line = trend(steps_N[late_N] / scale, average_N[late_N])
    return None if line is None else _Pace(-line.slope, line.error, float(steps_N[late_N][0]), now)


def _exhausted(evidence: Evidence) -> tuple[str, str]:
    span, rate = evidence.span, evidence.learning_rate
    often = repeated(evidence.epochs, SEVERAL_EPOCHS)
    cosine = span.schedule is Schedule.COSINE
    at_floor = not cosine or rate <= _AT_FLOOR * span.final_rate
    if often:
        floor = f", and the learning rate is at its floor ({rate:.2g})" if at_floor else ""
        return "DataExhausted", (
            f"Sources are repeated ({times_read(often)}){floor}: add fresh data or go on to the next stage."
        )
    if not at_floor:
        return "LearningRateHigh", (
            f"The learning rate, {rate:.2g}, has still to fall to {span.final_rate:.2g}, which should bring more: "
            "wait for that, or let a fork decay sooner."
        )
    return "LearningRateExhausted", (
        f"The learning rate stays at {rate:.2g}: decay it further, go on to the next stage, or stop here; forks with "
        "other rates show what that is worth."
    )
