"""Held-out domains are not measured, so the average and the other diagnoses are not about all of them."""

from skywork_trainer.config import Diagnosis
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.series import is_measured
from skywork_trainer.diagnosis.wording import listed

TYPE = "ValidationIncomplete"
LASTING_POINTS = 3
"""So many whole validations end it."""


def validation_incomplete(evidence: Evidence) -> Diagnosis | None:
    """Return whether domains were left out lately; None before the first validation."""
    if not evidence.points and not evidence.unmeasured and not evidence.cut:
        return None
    unreadable = [f"{name} ({why})" for name, why in sorted(evidence.unmeasured.items())]
    newest = evidence.points[-1].losses if evidence.points else {}
    odd = sorted(name for name, loss in newest.items() if not is_measured(loss) and name not in evidence.unmeasured)
    named = {*evidence.unmeasured, *odd, *evidence.cut}
    lately = [point for point in evidence.points[-LASTING_POINTS:] if evidence.domains]
    skipped = [
        name for name in evidence.domains if name not in named and any(name not in point.losses for point in lately)
    ]
    parts = [
        (unreadable, "DomainUnreadable", "cannot be measured", "Put the domain's shards back, or correct its uri"),
        (odd, "NotFinite", "have a loss that is no number", "Look whether training diverged"),
        (
            [*sorted(evidence.cut)],
            "TimeBudget",
            "were cut by validation.timeBudget",
            "Raise it, or validate fewer windows",
        ),
        (
            skipped,
            "DomainsSkipped",
            f"were left out of one of the last {LASTING_POINTS} validations",
            "If that goes on, raise validation.timeBudget",
        ),
    ]
    found = [part for part in parts if part[0]]
    if not found:
        message = f"All {len(evidence.domains)} domains were measured."
        return Diagnosis(type=TYPE, found=False, reason="Complete", message=message)
    message = " ".join(f"{listed(names)} {what}. {advice}." for names, _, what, advice in found)
    return Diagnosis(type=TYPE, found=True, reason=found[0][1], message=message)
