"""What detectors must know of the plan is read from the configuration."""

import pytest
from skywork_trainer.config import LearningRate, MixtureEntry, Point, Schedule, Shape, Share
from skywork_trainer.diagnosis import Evidence, gather

from tests.unit.diagnosis import paper


def gathered(stage: str, step: int) -> Evidence:
    return gather(paper.config(stage), step=step, points=(), steps=(), generation_step=0)


def test_the_stages_of_the_paper() -> None:
    told = gathered("2", 180_000)
    assert [(span.name, span.first, span.last) for span in told.stages] == [
        ("1a", 0, 119_210),
        ("1b", 119_210, 184_776),
        ("2", 184_776, 192_525),
    ]
    assert [span.steady_mixture for span in told.stages] == [True, True, False]
    assert told.stages[0].warm == 477 and told.stages[1].warm == told.stages[1].first
    assert [span.final_rate for span in told.stages] == [pytest.approx(6e-5)] * 3
    assert [span.peak_rate for span in told.stages] == [pytest.approx(rate) for rate in (6e-4, 6e-5, 6e-5)]
    assert told.stages[0].schedule is Schedule.COSINE and told.domains == paper.DOMAINS


def test_the_plan_ends_with_the_stage_that_trains() -> None:
    assert gathered("1a", 5).planned_steps == 119_210 and gathered("1b", 119_215).planned_steps == 184_776


@pytest.mark.parametrize(
    ("configured", "step", "stage", "rate"),
    [
        ("1a", 0, "1a", 6e-4 / 477),
        ("1a", 2, "1a", 2 * 6e-4 / 477),
        ("1a", 119_210, "1a", 6e-5),
        ("1b", 119_210, "1b", 6e-5),  # before its first step, and so measured for it
        ("1b", 119_000, "1a", 6e-5),  # an older checkpoint was all there was
        ("2", 192_525, "2", 6e-5),
    ],
)
def test_the_stage_and_the_rate_are_those_of_the_step(configured: str, step: int, stage: str, rate: float) -> None:
    told = gathered(configured, step)
    assert told.span.name == stage and told.learning_rate == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("share", "steady"),
    [
        (Share(start=0.3, end=0.3), True),
        (Share(start=0.3), True),
        (Share(start=0.1, end=0.4, shape=Shape.LINEAR), False),
        (Share(start=0.2, end=0.2, shape=Shape.LINEAR), True),
        (Share(points=(Point(at=0.0, share=0.1), Point(at=0.5, share=0.4))), False),
        (Share(points=(Point(at=0.0, share=0.1), Point(at=0.5, share=0.1))), True),
    ],
)
def test_a_mixture_is_steady_when_no_share_moves(share: Share, steady: bool) -> None:
    config = paper.config("1a")
    mixture = (MixtureEntry(source="stem", share=share), MixtureEntry(source="main"))
    stage = config.stages[0].model_copy(update={"mixture": mixture})
    told = gather(config.model_copy(update={"stages": (stage,)}), step=0, points=(), steps=(), generation_step=0)
    assert told.span.steady_mixture is steady


def test_a_warm_up_longer_than_its_stage_ends_with_it() -> None:
    config = paper.config("1a")
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=1e-3, warmup_tokens=9 * 10**12)
    stage = config.stages[0].model_copy(update={"learning_rate": rate})
    told = gather(config.model_copy(update={"stages": (stage,)}), step=0, points=(), steps=(), generation_step=0)
    assert told.span.warm == told.span.last
