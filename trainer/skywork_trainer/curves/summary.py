"""What a person asks of a run first, out of its curve. Pure."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from skywork_trainer.control import DomainLoss
from skywork_trainer.curve import ValidationRecord
from skywork_trainer.curves.accounting import Accounts, account, worked
from skywork_trainer.curves.run import Curve, Floats
from skywork_trainer.perplexity import average_loss, perplexity

_PLANNED = frozenset(("StageCompleted", "Resized", "Suspended", "WaitingForQuota", "JobSuspended"))
"""Ends of generations that nothing broke."""
_RECENT_STEPS = 100


@dataclass(frozen=True)
class DomainSummary:
    """One held-out domain now."""

    domain: str
    loss: float
    """Nats per token."""
    stage_start: float | None
    """As it was before the stage's first step, or at its first validation."""
    bits_per_byte: float | None
    reference_loss: float | None
    """Nats per token of the reference tokenizer."""
    step: int

    @property
    def change(self) -> float | None:
        """Since the start of the stage."""
        return None if self.stage_start is None else self.loss - self.stage_start

    @property
    def perplexity(self) -> float:
        """Of the run's own tokens."""
        return perplexity(self.loss)


@dataclass(frozen=True)
class StageSummary:
    """One stage as far as it is trained."""

    name: str
    first_step: int
    last_step: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """One run in one row."""

    run: str
    uri: str
    checkpoint: str
    step: int
    tokens: int
    time: float | None
    """When the newest step was done, Unix seconds."""
    stages: tuple[StageSummary, ...]
    train_loss: float | None
    """Mean of the newest steps."""
    tokens_per_second: float | None
    """Median of the newest steps."""
    domains: tuple[DomainSummary, ...]
    average_loss: float | None
    """Mean over the domains, each counting the same."""
    accounts: Accounts
    faults: dict[str, int]
    """Why generations ended, as far as the next one saved something."""
    rollbacks: int
    notes: tuple[str, ...]

    @property
    def stage(self) -> str:
        """The newest one's name."""
        return self.stages[-1].name if self.stages else ""

    @property
    def average_perplexity(self) -> float | None:
        """exp of the mean of the domains' log perplexities, as the Skywork report averages."""
        return None if self.average_loss is None else perplexity(self.average_loss)


def summarize(curve: Curve) -> Summary:
    """Return the run in figures, as of its newest checkpoint."""
    steps, batch = curve.steps, curve.global_batch_tokens
    loss, seconds = _finite(steps.loss[-_RECENT_STEPS:]), _finite(steps.seconds[-_RECENT_STEPS:])
    pace = float(np.median(seconds)) if len(seconds) else 0.0
    times = _finite(steps.time)
    domains = newest(curve)
    faults = Counter(record.after for record in curve.generations if record.after and record.after not in _PLANNED)
    return Summary(
        run=curve.run,
        uri=curve.uri,
        checkpoint=curve.checkpoint,
        step=curve.step,
        tokens=curve.tokens,
        time=float(times[-1]) if len(times) else None,
        stages=tuple(
            StageSummary(span.name, span.first_step, span.last_step, (span.last_step - span.first_step) * batch)
            for span in curve.stages
        ),
        train_loss=float(loss.mean()) if len(loss) else None,
        tokens_per_second=batch / pace if pace > 0 else None,
        domains=domains,
        average_loss=average_loss([one.loss for one in domains]) if domains else None,
        accounts=account(worked(curve)),
        faults=dict(faults.most_common()),
        rollbacks=len(curve.rollbacks),
        notes=curve.notes,
    )


def newest(curve: Curve) -> tuple[DomainSummary, ...]:
    """Return every domain of the newest validation, beside what it was when that stage began."""
    if not curve.validations:
        return ()
    stage = curve.validations[-1].stage
    of_stage = [record for record in curve.validations if record.stage == stage]
    now, before = _newest_by_domain(of_stage), _start_by_domain(of_stage)
    return tuple(
        DomainSummary(
            domain=name,
            loss=one.loss,
            stage_start=before.get(name),
            bits_per_byte=one.bits_per_byte,
            reference_loss=one.reference_loss,
            step=one.step,
        )
        for name, one in now.items()
    )


def _newest_by_domain(records: list[ValidationRecord]) -> dict[str, DomainLoss]:
    # A validation that ran out of its time budget leaves domains out: theirs are older, not gone.
    return {one.domain: one for record in records for one in record.domains}


def _start_by_domain(records: list[ValidationRecord]) -> dict[str, float]:
    return {one.domain: one.loss for record in reversed(records) for one in record.domains}


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]
