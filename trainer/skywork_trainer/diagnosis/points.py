"""Validations as points of a curve, and how many of them a run carries about. Pure."""

import heapq
import math
from collections.abc import Iterable, Sequence

from skywork_trainer.config import CurvePoint, DomainLoss
from skywork_trainer.curve import Record, StepRecord, ValidationRecord

MOST_POINTS = 128
"""What a run carries about; diagnosis is made for about this many."""
DENSE_POINTS = 16
"""The newest, which are kept as long as there is room: detectors ask for what lasts several validations."""


def curve_point(
    *, step: int, stage: str, domains: Iterable[DomainLoss], train_losses: Iterable[float], stage_start: bool = False
) -> CurvePoint:
    """Return the point of one validation; of `domains`, those of another step or without a finite loss are left out.

    `train_losses` are those of the steps since the point before; steps left out (not a number) do not count.
    """
    known = [loss for loss in train_losses if math.isfinite(loss)]
    return CurvePoint(
        step=step,
        stage=stage,
        losses={entry.domain: entry.loss for entry in domains if entry.step == step and math.isfinite(entry.loss)},
        train_loss=math.fsum(known) / len(known) if known else None,
        stage_start=stage_start,
    )


def curve_points(records: Iterable[Record]) -> tuple[CurvePoint, ...]:
    """Return a point for every validation of a recorded curve, in its order."""
    points: list[CurvePoint] = []
    train_losses: list[float] = []
    for record in records:
        if isinstance(record, StepRecord):
            train_losses.append(record.loss)
        elif isinstance(record, ValidationRecord):
            points.append(
                curve_point(
                    step=record.step,
                    stage=record.stage,
                    domains=record.domains,
                    train_losses=train_losses,
                    stage_start=record.stage_start,
                )
            )
            train_losses = []
    return tuple(points)


def thinned(points: Sequence[CurvePoint], most: int = MOST_POINTS) -> tuple[CurvePoint, ...]:
    """Return at most `most` points: the first, the last, starts of stages, the newest, and the others evenly spread.

    What stays is what was there, so thinning again after each new point keeps old points until their turn comes: the
    one whose neighbours lie closest together goes first, the older one of equals.
    """
    if most < 2:
        raise ValueError(f"a curve needs at least 2 points, got most={most}")
    count = len(points)
    if count <= most:
        return tuple(points)
    dense = count - min(DENSE_POINTS, most // 2)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))

    def turn(index: int) -> tuple[int, int, int]:
        """Return the order in which points go."""
        worth = 2 if points[index].stage_start else 1 if index >= dense else 0
        return worth, points[after[index]].step - points[before[index]].step, index

    # Gaps only widen, so an entry that is out of date comes too early, and goes back to its new place.
    queue = [turn(index) for index in range(1, count - 1)]
    heapq.heapify(queue)
    gone: set[int] = set()
    while count - len(gone) > most:
        entry = heapq.heappop(queue)
        index = entry[-1]
        if entry != turn(index):
            heapq.heappush(queue, turn(index))
            continue
        gone.add(index)
        after[before[index]], before[after[index]] = after[index], before[index]
    return tuple(point for index, point in enumerate(points) if index not in gone)
