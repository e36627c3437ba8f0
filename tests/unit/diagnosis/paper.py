"""The Skywork-13B run as its report draws it, replayed as it would be live. T tokens throughout.

Anchors are the report's: figure 3 (end of stage 1a: training loss 1.68, English 1.765, Chinese 1.935; end of 1b: 1.62,
1.72, 1.88; spikes above 2.2 before 0.5 T and near 0.7, 0.8 and 1.1 T; 2.15 at the switch at 2 T), table 7 (0.5 T: 1.86
and 2.08). Between them the curves are ours.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from skywork_trainer.config import (
    PRESETS,
    Checkpoints,
    CurvePoint,
    Diagnosis,
    LearningRate,
    MixtureEntry,
    RunConfig,
    Schedule,
    Shape,
    Share,
    Source,
    Stage,
    Validation,
)
from skywork_trainer.diagnosis import RECENT_STEPS, Detector, Evidence, RecentStep, diagnose, gather, thinned

Said: TypeAlias = tuple[Diagnosis, ...]
TOKENS_PER_STEP = 4096 * 4096
DOMAINS = ("en-web", "zh-web", "code", "papers", "social", "textbooks")
STAGES = ("1a", "1b", "2")
SWITCH, STAGE_2, END = 2.0, 3.1, 3.23
SWITCH_STEP = math.ceil(SWITCH * 1e12 / TOKENS_PER_STEP)
SPIKES = (0.12, 0.2, 0.27, 0.33, 0.41, 0.47, 0.7, 0.8, 1.1)
MAIN = (MixtureEntry(source="main", share=Share(start=1.0, end=1.0)),)
RAMP = (
    MixtureEntry(source="stem", share=Share(start=0.1, end=0.4, shape=Shape.QUADRATIC)),
    MixtureEntry(source="main"),
)


def config(stage: str) -> RunConfig:
    """Return the plan as the trainer of one stage has it: up to that stage."""
    constant = LearningRate(schedule=Schedule.CONSTANT)
    cosine = LearningRate(schedule=Schedule.COSINE, peak=6e-4, final=6e-5, warmup_tokens=8 * 10**9)
    stages = (
        Stage(name="1a", tokens=2 * 10**12, learning_rate=cosine, mixture=MAIN),
        Stage(name="1b", tokens=1_100 * 10**9, learning_rate=constant, mixture=MAIN),
        Stage(name="2", tokens=130 * 10**9, learning_rate=constant, mixture=RAMP),
    )
    return RunConfig(
        run="skywork-13b",
        namespace="research",
        incarnation=0,
        stage=stage,
        model=PRESETS["skywork-13b"],
        tokenizer_uri="s3://skypile/tokenizer",
        sequence_length=4096,
        global_batch_sequences=4096,
        sources=tuple(Source(name=name, uri=f"s3://skypile/{name}") for name in ("main", "stem")),
        stages=stages[: STAGES.index(stage) + 1],
        validation=Validation(
            every_tokens=8 * 10**9, domains=tuple(Source(name=name, uri=f"s3://skypile/{name}") for name in DOMAINS)
        ),
        checkpoints=Checkpoints(uri="s3://runs/skywork-13b"),
    )


def power_law(trained: float, at_half: float, at_two: float) -> float:
    """Through the report's figures at 0.5 and 2 T; straight against the logarithm of the tokens between them."""
    pace = (at_half - at_two) / math.log(4)
    if trained <= 0:
        return 11.09
    if trained < 0.5:
        return min(at_half + pace / 0.35 * ((0.5 / trained) ** 0.35 - 1), 11.09)
    return at_half - pace * math.log(trained / 0.5)


def general(trained: float, *, at_half: float, at_two: float, at_end: float) -> float:
    """A general domain: falls, again and mostly in the first 0.2 T behind the switch, levels, and stays in stage 2."""
    if trained <= SWITCH:
        return power_law(trained, at_half, at_two)
    behind = min(trained, STAGE_2) - SWITCH
    fall = (at_two - at_end) * (1 - math.exp(-behind * math.log(10) / 0.2))
    drift = 0.004 * max(trained - STAGE_2, 0.0) / (END - STAGE_2)
    return at_two - fall + drift


def held_out(trained: float) -> dict[str, float]:
    en = general(trained, at_half=1.86, at_two=1.765, at_end=1.72)
    zh = general(trained, at_half=2.08, at_two=1.935, at_end=1.88)
    stem = 0.25 * (1 - math.exp(-max(trained - STAGE_2, 0.0) / 0.04))
    return {
        "en-web": en,
        "zh-web": zh,
        "code": 0.55 * en,
        "papers": en + 0.08,
        "social": zh + 0.4,
        "textbooks": 0.5 * (en + zh) - 0.3 - stem,
    }


def train(trained: float) -> float:
    """Training loss without its noise: beside the held-out losses in 1a, and falling on while they level in 1b."""
    if trained <= SWITCH:
        mean = (power_law(trained, 1.86, 1.765) + power_law(trained, 2.08, 1.935)) / 2
        return mean - 0.17
    if trained <= STAGE_2:
        return 1.665 - (1.665 - 1.62) * (trained - SWITCH) / (STAGE_2 - SWITCH)
    return 1.62 - 0.1 * (trained - STAGE_2) / (END - STAGE_2)


@dataclass
class Replay:
    """One run, measured every `every` T tokens, with seeded noise."""

    seed: int = 0
    every: float = 0.01
    noise: float = 0.003
    common_noise: float = 0.002
    losses: Callable[[float], dict[str, float]] = held_out
    train: Callable[[float], float] = train
    with_steps: bool = False
    epochs: Callable[[float], float] = lambda trained: trained / 1.5

    def said(self, detectors: tuple[Detector, ...], *, first: float = 0.0) -> Iterator[tuple[Evidence, Said]]:
        """Yield what is said behind each validation, each told what was said before."""
        before: Said = ()
        for evidence in self.evidence(first=first):
            before = diagnose(replace(evidence, before=before), detectors)
            yield evidence, before

    def evidence(self, *, first: float = 0.0, last: float = math.inf) -> Iterator[Evidence]:
        """Yield the evidence behind each validation, as a trainer would gather it."""
        draw = np.random.default_rng(self.seed)
        points: tuple[CurvePoint, ...] = ()
        for stage in STAGES:
            plan = config(stage)
            span = plan.stage_steps(plan.stage_index)
            interval = round(self.every * 1e12 / TOKENS_PER_STEP)
            for step in [*range(span.start, span.stop, interval), span.stop]:
                trained = step * TOKENS_PER_STEP / 1e12
                points = thinned((*points, self._point(step, stage, draw, interval, start=step == span.start)))
                if not first <= trained <= last:
                    continue
                yield gather(
                    plan,
                    step=step,
                    points=points,
                    steps=self._steps(step) if self.with_steps else (),
                    generation_step=max(step - 3 * RECENT_STEPS, 0),
                    best_step_seconds=17.5,
                    epochs={"main": self.epochs(trained)},
                )

    def _point(self, step: int, stage: str, draw: np.random.Generator, interval: int, *, start: bool) -> CurvePoint:
        trained = step * TOKENS_PER_STEP / 1e12
        common = draw.normal(0, self.common_noise)
        losses = {name: loss + common + draw.normal(0, self.noise) for name, loss in self.losses(trained).items()}
        between = np.linspace(max(step - interval, 1), max(step, 1), 9) * TOKENS_PER_STEP / 1e12
        mean = float(np.mean([self.train(at) for at in between])) + draw.normal(0, 0.02 / math.sqrt(interval))
        return CurvePoint(step=step, stage=stage, losses=losses, train_loss=None if start else mean, stage_start=start)

    def _steps(self, step: int) -> tuple[RecentStep, ...]:
        draw = np.random.default_rng((self.seed, step))
        numbers = range(max(step - RECENT_STEPS, 0) + 1, step + 1)
        noise = draw.normal(0, 0.02, len(numbers))
        seconds = draw.normal(17.5, 0.2, len(numbers))
        # A little before a validation, where the detector looks.
        interval = round(self.every * 1e12 / TOKENS_PER_STEP)
        spikes = {math.ceil(at * 1e12 / TOKENS_PER_STEP / interval) * interval - 40 for at in SPIKES}
        steps = []
        for number, off, took in zip(numbers, noise, seconds, strict=True):
            trained = number * TOKENS_PER_STEP / 1e12
            behind = number - SWITCH_STEP - 1
            jump = 0.48 * math.exp(-behind / 8) if 0 <= behind < 80 else 0.0
            loss = self.train(trained) + off + jump + (0.6 if number in spikes else 0.0)
            steps.append(RecentStep(number, loss, took, 0.05))
        return tuple(steps)
