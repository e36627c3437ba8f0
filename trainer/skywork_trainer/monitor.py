"""What rank 0 remembers of a run while it trains: records for the curve, and the evidence for its diagnosis."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from skywork_trainer.config import CurvePoint, DomainLoss, RunConfig
from skywork_trainer.curve import (
    EventRecord,
    GenerationRecord,
    MixtureRecord,
    Record,
    StepRecord,
    TimeRecord,
    ValidationRecord,
)

_KEPT_STEPS = 512
_MOST_POINTS = 128


class Monitor:
    """One generation's; ranks other than 0 keep nothing."""

    def __init__(self, config: RunConfig, *, leads: bool, generation: int, note: Callable[[Record], None]) -> None:
        self._config, self._leads, self._generation, self._note = config, leads, generation, note
        self._points: list[CurvePoint] = []
        self._steps: deque[StepRecord] = deque(maxlen=_KEPT_STEPS)
        self._loss_sum, self._loss_count = 0.0, 0

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The run's validations, thinned out."""
        return tuple(self._points)

    def restored(self, *, step: int, curve: Sequence[CurvePoint], world: int, after: str, resumed_from: str) -> None:
        """Take down where this generation goes on."""
        self._points = list(curve)
        self._note(
            GenerationRecord(
                generation=self._generation,
                step=step,
                stage=self._config.stage,
                time=time.time(),
                world=world,
                after=after,
                resumed_from=resumed_from,
            )
        )

    def stepped(self, *, step: int, loss: float, rate: float, norm: float, seconds: float, waited: float) -> None:
        """Take down a step that is done."""
        if not self._leads:
            return
        record = StepRecord(
            step=step,
            stage=self._config.stage,
            time=time.time(),
            loss=loss,
            rate=rate,
            norm=norm,
            seconds=seconds,
            wait_seconds=waited,
        )
        self._note(record)
        self._steps.append(record)
        if math.isfinite(loss):
            self._loss_sum, self._loss_count = self._loss_sum + loss, self._loss_count + 1

    def happened(self, step: int, reason: str, message: str) -> None:
        """Take down something that a person looks for on a curve."""
        self._note(EventRecord(step=step, time=time.time(), reason=reason, message=message))

    def validated(self, step: int, domains: tuple[DomainLoss, ...], *, seconds: float, stage_start: bool) -> None:
        """Take down a validation, of the domains that it came to."""
        self._note(
            ValidationRecord(
                step=step,
                stage=self._config.stage,
                time=time.time(),
                seconds=seconds,
                stage_start=stage_start,
                domains=domains,
            )
        )
        point = CurvePoint(
            step=step,
            stage=self._config.stage,
            losses={one.domain: one.loss for one in domains},
            train_loss=self._loss_sum / self._loss_count if self._loss_count else None,
            stage_start=stage_start,
        )
        self._points = list(_thinned([*self._points, point], _MOST_POINTS))
        self._loss_sum, self._loss_count = 0.0, 0

    def closing(self, step: int, *, spent: Mapping[str, float], drawn: Mapping[str, int]) -> list[Record]:
        """Return what a part of the curve that ends here says last."""
        return [
            TimeRecord(generation=self._generation, time=time.time(), spent=dict(spent)),
            MixtureRecord(step=step, stage=self._config.stage, sequences=dict(drawn)),
        ]


def _thinned(points: Sequence[CurvePoint], most: int) -> Sequence[CurvePoint]:
    return points[-most:]
