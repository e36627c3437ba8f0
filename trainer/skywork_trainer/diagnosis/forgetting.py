"""In a later stage, what earlier ones taught gets lost: domains stay above their loss before the stage's first step."""

from dataclasses import dataclass

from skywork_trainer.config import CurvePoint, Diagnosis
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.series import holds, is_measured
from skywork_trainer.diagnosis.wording import listed, tokens

TYPE = "Forgetting"
LASTING_POINTS = 2
LARGE = 2.0
"""Times the limit: no second validation is waited for, unless this one is the stage's first."""
LEAVES = 0.8
"""Of the limit; below it nothing is forgotten any more."""


@dataclass(frozen=True)
class _Rise:
    domain: str
    before: float
    now: float
    holds: bool

    def __str__(self) -> str:
        return f"{self.domain} {self.before:.3f} -> {self.now:.3f} ({self.now - self.before:+.3f})"


def forgetting(evidence: Evidence) -> Diagnosis | None:
    """Return whether guarded domains lie too far above the stage's start.

    None in the first stage, and until a domain was measured before the stage's first step and after it.
    """
    if evidence.stage_index == 0:
        return None
    guard = evidence.guards.forgetting
    start = next((point for point in reversed(evidence.stage_points) if point.stage_start), None)
    if start is None:
        return None
    since = [point for point in evidence.stage_points if not point.stage_start and point.step > start.step]
    domains = guard.domains or tuple(sorted(start.losses))
    rises = [rise for domain in domains if (rise := _rise(domain, start, since, evidence)) is not None]
    if not rises:
        return None
    lost = [rise for rise in rises if rise.holds]
    if not lost:
        highest = max(rises, key=lambda rise: rise.now - rise.before)
        message = f"No guarded domain stays more than {guard.max_rise:g} above the stage's start; highest: {highest}."
        return Diagnosis(type=TYPE, found=False, reason="Remembered", message=message)
    lost.sort(key=lambda rise: rise.before - rise.now)
    trained = tokens((since[-1].step - start.step) * evidence.tokens_per_step)
    return Diagnosis(
        type=TYPE,
        found=True,
        reason="AboveStageStart",
        message=(
            f"Since stage {evidence.span.name} began, {trained} ago: {listed(map(str, lost))}; the limit is "
            f"{guard.max_rise:g}. Give the earlier stages' sources a larger share, ramp the new ones more slowly, or "
            "lower the learning rate; the checkpoint before the stage is the one to fork from."
        ),
    )


def _rise(domain: str, start: CurvePoint, since: list[CurvePoint], evidence: Evidence) -> _Rise | None:
    limit = evidence.guards.forgetting.max_rise
    known = [point for point in since if is_measured(point.losses.get(domain))]
    before = start.losses.get(domain)
    if before is None or not is_measured(before) or not known:
        return None
    rises = [point.losses[domain] - before for point in known]
    # The first one behind the switch may have been measured in the middle of a jump that recovers at once. Where the
    # stage is over it will not be looked at again.
    over = [point.step >= evidence.span.last for point in known]
    at_once = [rise > LARGE * limit and (index > 0 or over[index]) for index, rise in enumerate(rises)]
    if len(rises) == 1 and over[0]:
        at_once = [rises[0] > limit]
    held = holds(
        [rise > limit for rise in rises],
        [rise < LEAVES * limit for rise in rises],
        times=LASTING_POINTS,
        at_once=at_once,
    )
    return _Rise(domain, before, known[-1].losses[domain], held)
