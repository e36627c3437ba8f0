"""Validation losses as the status and people take them. Pure."""

import math
from collections.abc import Iterable, Sequence

from skywork_trainer.config import DomainLoss

from skywork_operator.api.status import DomainValidation, StageDomain

MOST_DOMAINS = 64
"""As many as a spec may name."""


def by_domain(losses: Sequence[DomainLoss]) -> list[DomainValidation]:
    """The newest loss of each domain."""
    return [
        DomainValidation(
            domain=said.domain,
            loss=f"{said.loss:.4f}",
            bits_per_byte=_text(said.bits_per_byte),
            reference_loss=_text(said.reference_loss),
            step=said.step,
        )
        for said in losses[:MOST_DOMAINS]
    ]


def average(losses: Iterable[float]) -> tuple[str | None, str | None]:
    """Mean loss, each domain counting alike, and exp of it: the perplexity whose logarithm is that mean.

    Both None without a domain, or where one is no number.
    """
    known = list(losses)
    mean = sum(known) / len(known) if known else math.nan
    if not math.isfinite(mean):
        return None, None
    return f"{mean:.4f}", f"{math.exp(mean):.4g}" if mean < math.log(1e12) else None


def moved(domains: Sequence[StageDomain]) -> str:
    """How a stage moved its domains, for people; empty without any."""
    told = [
        f"{entry.domain} {entry.end}" + (f" (was {entry.start})" if entry.start is not None else "")
        for entry in domains
        if entry.end is not None
    ]
    return ", ".join(told)


def now(domains: Sequence[DomainValidation]) -> str:
    """The newest losses, for people."""
    return ", ".join(f"{entry.domain} {entry.loss}" for entry in domains)


def _text(value: float | None) -> str | None:
    return f"{value:.4f}" if value is not None else None
