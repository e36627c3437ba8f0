"""Synthetic curves with seeded noise, and evidence made of them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from skywork_trainer.config import CurvePoint, Diagnosis
from skywork_trainer.diagnosis import Evidence, RecentStep, StageSpan

FIRST = StageSpan("first", 0, 10_000, final_rate=6e-5, peak_rate=6e-4)
SECOND = StageSpan("second", 10_000, 20_000, final_rate=6e-5, peak_rate=6e-5)
Curve = Callable[[float], float]


def level(value: float) -> Curve:
    return lambda x: value


def line(first: float, last: float) -> Curve:
    """From the stage's start to its end."""
    return lambda x: first + (last - first) * x


def curve(
    losses: Mapping[str, Curve],
    *,
    span: StageSpan = FIRST,
    train: Curve | None = None,
    count: int = 40,
    until: float = 1.0,
    noise: float = 0.002,
    seed: int = 0,
    at: Sequence[float] | None = None,
) -> tuple[CurvePoint, ...]:
    """Return the points of one stage, the first before its first step.

    Losses are functions of the fraction x of the stage.
    """
    draw = np.random.default_rng(seed)
    places = list(at) if at is not None else [until * index / count for index in range(count + 1)]
    return tuple(
        CurvePoint(
            step=span.first + round(x * (span.last - span.first)),
            stage=span.name,
            losses={name: loss(x) + draw.normal(0, noise) for name, loss in losses.items()},
            train_loss=train(x) + draw.normal(0, noise) if train is not None and index else None,
            stage_start=index == 0,
        )
        for index, x in enumerate(places)
    )


def evidence(points: Sequence[CurvePoint] = (), steps: Sequence[RecentStep] = (), **changes: Any) -> Evidence:
    """Return evidence at the newest point or step, of the stage it belongs to."""
    fields: dict[str, Any] = {
        "stages": (FIRST, SECOND),
        "stage": points[-1].stage if points else "first",
        "step": max([*(point.step for point in points[-1:]), *(each.step for each in steps[-1:])], default=0),
        "tokens_per_step": 1_000_000,
        "points": tuple(points),
        "steps": tuple(steps),
        "learning_rate": 6e-5,
    }
    return Evidence(**(fields | changes))


def steps(
    count: int,
    *,
    first: int = 0,
    seconds: Curve = lambda index: 1.0,
    wait: Curve = lambda index: 0.0,
    loss: Curve = lambda index: 2.0,
    noise: float = 0.02,
    seed: int = 0,
) -> tuple[RecentStep, ...]:
    """Return steps behind step `first`; figures are functions of the steps since then, and noise is a share of them."""
    draw = np.random.default_rng(seed)
    return tuple(
        RecentStep(
            first + index,
            loss(index) + draw.normal(0, noise),
            seconds(index) * (1 + draw.normal(0, noise)),
            wait(index),
        )
        for index in range(1, count + 1)
    )


def verdict(diagnosis: Diagnosis | None) -> bool | None:
    return None if diagnosis is None else diagnosis.found


def changes(verdicts: Sequence[bool | None]) -> int:
    """Return how often a condition came or went."""
    known = [each for each in verdicts if each is not None]
    return sum(left != right for left, right in pairwise(known))
