"""What rank 0 remembers of a run while it trains: records for the curve, and the evidence for its diagnosis."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from skywork_trainer.config import CurvePoint, Diagnosis, DomainLoss, RunConfig
from skywork_trainer.curve import (
    EventRecord,
    GenerationRecord,
    MixtureRecord,
    Record,
    StepRecord,
    TimeRecord,
    ValidationRecord,
)
from skywork_trainer.diagnosis import (
    CURVE_DETECTORS,
    RECENT_STEPS,
    STEP_DETECTORS,
    Detector,
    RecentStep,
    curve_point,
    diagnose,
    gather,
    sustained_seconds,
    thinned,
)

_DIAGNOSE_EVERY_SECONDS = 15.0


class Monitor:
    """One generation's. Only rank 0's is asked for records and diagnoses; the others keep the curve alone."""

    def __init__(
        self,
        config: RunConfig,
        *,
        leads: bool,
        generation: int,
        note: Callable[[Record], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._leads, self._generation = config, leads, generation
        self._note, self._clock = note, clock
        self._points: tuple[CurvePoint, ...] = ()
        self._steps: deque[RecentStep] = deque(maxlen=RECENT_STEPS)
        self._losses: list[float] = []
        self._step = self._first_step = 0
        self._best_step_seconds: float | None = None
        self._epochs: Mapping[str, float] = {}
        self._unmeasured: Mapping[str, str] = {}
        self._cut: tuple[str, ...] = ()
        self._found: dict[str, Diagnosis] = {}
        self._looked = clock()

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The run's validations, thinned out."""
        return self._points

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """What every detector said last."""
        return tuple(self._found.values())

    def restored(
        self,
        *,
        step: int,
        curve: Sequence[CurvePoint],
        world: int,
        after: str,
        resumed_from: str,
    ) -> None:
        """Take down where this generation goes on."""
        self._points, self._step, self._first_step = tuple(curve), step, step
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
        self._look(CURVE_DETECTORS)

    def recall(self, losses: Iterable[tuple[int, float]]) -> None:
        """Take in (steps done, loss) of what generations before this one trained."""
        self._steps.extend(RecentStep(step, loss, math.nan) for step, loss in losses)

    def stepped(
        self,
        *,
        step: int,
        loss: float,
        rate: float,
        norm: float,
        seconds: float,
        waited: float,
        epochs: Mapping[str, float],
    ) -> None:
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
        self._steps.append(RecentStep(step, loss, seconds, waited))
        self._losses.append(loss)
        self._step, self._epochs = step, epochs
        if self._clock() - self._looked >= _DIAGNOSE_EVERY_SECONDS:
            self._looked = self._clock()
            self._look(STEP_DETECTORS)

    def happened(self, step: int, reason: str, message: str) -> None:
        """Take down something that a person looks for on a curve."""
        self._note(EventRecord(step=step, time=time.time(), reason=reason, message=message))

    def validated(
        self,
        step: int,
        domains: tuple[DomainLoss, ...],
        *,
        seconds: float,
        stage_start: bool,
        cut: tuple[str, ...],
        unmeasured: Mapping[str, str],
    ) -> None:
        """Take down a validation, the domains that its time budget left out, and why others cannot be measured."""
        stage = self._config.stage
        self._note(
            ValidationRecord(
                step=step, stage=stage, time=time.time(), seconds=seconds, stage_start=stage_start, domains=domains
            )
        )
        point = curve_point(step=step, stage=stage, domains=domains, train_losses=self._losses, stage_start=stage_start)
        self._points = thinned((*self._points, point))
        self._losses.clear()
        self._step, self._cut, self._unmeasured = step, cut, dict(unmeasured)
        self._look(CURVE_DETECTORS)

    def closing(self, step: int, *, spent: Mapping[str, float], drawn: Mapping[str, int]) -> list[Record]:
        """Return what a part of the curve that ends here says last."""
        return [
            TimeRecord(generation=self._generation, time=time.time(), spent=dict(spent)),
            MixtureRecord(step=step, stage=self._config.stage, sequences=dict(drawn)),
        ]

    def _look(self, detectors: Sequence[Detector]) -> None:
        if not self._leads:
            return
        sustained = sustained_seconds(self._steps, self._first_step)
        if sustained is not None:
            self._best_step_seconds = min(sustained, self._best_step_seconds or sustained)
        evidence = gather(
            self._config,
            step=self._step,
            points=self._points,
            steps=self._steps,
            generation_step=self._first_step,
            best_step_seconds=self._best_step_seconds,
            epochs=self._epochs,
            unmeasured=self._unmeasured,
            cut=self._cut,
            before=self.diagnoses,
        )
        self._found |= {found.type: found for found in diagnose(evidence, detectors)}
