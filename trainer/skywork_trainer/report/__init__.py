"""A report of one or several runs: one HTML file that needs nothing else, or all of it as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skywork_trainer.curves.run import Curve
from skywork_trainer.curves.summary import Summary


@dataclass(frozen=True)
class Reported:
    """One run of a report."""

    label: str
    """What it is called there; different for each."""
    curve: Curve
    summary: Summary
    status: Mapping[str, Any] | None = None
    """What the cluster says of it, where it was asked for by name."""


def labels(curves: Sequence[Curve]) -> list[str]:
    """Return a name for each: the run's, with its place where two are called alike."""
    names = [curve.run for curve in curves]
    told = [
        name if names.count(name) == 1 else f"{name} ({curve.uri})" for name, curve in zip(names, curves, strict=True)
    ]
    return [name if told.count(name) == 1 else f"{name} #{at}" for at, name in enumerate(told, start=1)]
