"""Lines to draw, out of a curve: by domain against tokens, by source within a stage. Pure."""

from typing import NamedTuple

import numpy as np

from skywork_trainer.curve import ValidationRecord
from skywork_trainer.curves.run import Curve, Floats


class Measured(NamedTuple):
    """One domain's validations; a value is not a number where nobody knows it."""

    tokens: Floats
    loss: Floats
    bits_per_byte: Floats
    reference_loss: Floats


class Shares(NamedTuple):
    """What a stage drew between `edges`: shares[source][i] from edges[i] to edges[i + 1]."""

    edges: Floats
    """Tokens of the run."""
    shares: dict[str, Floats]


def measured(curve: Curve, *, stage: str | None = None) -> dict[str, Measured]:
    """Return all domains by name, of one stage or of all."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for record in curve.validations:
        if stage is not None and record.stage != stage:
            continue
        for one in record.domains:
            rows.setdefault(one.domain, []).append(
                (
                    record.step * curve.global_batch_tokens,
                    one.loss,
                    _number(one.bits_per_byte),
                    _number(one.reference_loss),
                )
            )
    return {name: Measured(*np.array(of, dtype=np.float64).T) for name, of in rows.items()}


def averages(curve: Curve) -> tuple[Floats, Floats]:
    """Return tokens, and the mean loss of the domains; of validations that measured all that the newest did."""
    if not curve.validations:
        return np.array([]), np.array([])
    wanted = {one.domain for one in curve.validations[-1].domains}
    whole = [record for record in curve.validations if {one.domain for one in record.domains} == wanted]
    tokens = np.array([record.step * curve.global_batch_tokens for record in whole], dtype=np.float64)
    return tokens, np.array([_mean(record) for record in whole], dtype=np.float64)


def drawn(curve: Curve, stage: str, *, most: int = 80) -> Shares | None:
    """Return what each source gave to the stage over its course; None where nothing was recorded."""
    records = [record for record in curve.mixtures if record.stage == stage and record.sequences]
    first = next((span.first_step for span in curve.stages if span.name == stage), None)
    if not records or first is None:
        return None
    # Few stretches: what a short one drew is mostly rounding.
    at = sorted({round(i) for i in np.linspace(0, len(records) - 1, min(most, len(records)))})
    chosen = [records[i] for i in at if records[i].step > first]
    if not chosen:
        return None
    names = sorted({name for record in chosen for name in record.sequences})
    counts = np.array([[0.0] * len(names), *([float(r.sequences.get(n, 0)) for n in names] for r in chosen)])
    differences = np.maximum(np.diff(counts, axis=0), 0.0)
    totals = np.maximum(differences.sum(axis=1, keepdims=True), 1.0)
    edges = np.array([first, *(record.step for record in chosen)], dtype=np.float64) * curve.global_batch_tokens
    return Shares(edges, dict(zip(names, (differences / totals).T, strict=True)))


def throughput(curve: Curve) -> tuple[Floats, Floats]:
    """Return Unix seconds and tokens a second of every step whose time is known, with a gap where none was done."""
    known = np.isfinite(curve.steps.time) & (curve.steps.seconds > 0)
    times, seconds = curve.steps.time[known], curve.steps.seconds[known]
    if not len(times):
        return times, seconds
    rates = curve.global_batch_tokens / seconds
    pause = max(60.0, 10 * float(np.median(seconds)))
    gaps = np.flatnonzero(np.diff(times) > pause) + 1
    return np.insert(times, gaps, times[gaps] - seconds[gaps]), np.insert(rates, gaps, np.nan)


def _mean(record: ValidationRecord) -> float:
    return sum(one.loss for one in record.domains) / len(record.domains) if record.domains else np.nan


def _number(value: float | None) -> float:
    return np.nan if value is None else value
