"""Training loss falls on and the held-out average does not follow, inside one stage."""

import math
from dataclasses import replace

import pytest
from skywork_trainer.diagnosis.gap_growing import gap_growing

from tests.unit.diagnosis.curves import FIRST, SECOND, Curve, changes, curve, evidence, level, line, verdict


def falling(x: float) -> float:
    return 2.0 - 0.1 * math.log(x + 0.01)


def apart(x: float) -> float:
    """Beside the held-out loss for half the stage, then faster."""
    return falling(x) - 0.15 - 0.08 * max(x - 0.4, 0.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("held_out", "train", "expected"),
    [
        (line(1.80, 1.80), line(1.66, 1.62), True),
        (line(1.80, 1.84), line(1.66, 1.62), True),
        (line(1.80, 1.76), line(1.66, 1.62), False),
        (line(1.80, 1.77), line(1.66, 1.62), False),  # follows, if more slowly
        (level(1.8), level(1.62), False),  # a gap that stays
        (line(1.80, 1.86), level(1.62), False),  # grows, but training does not fall: another matter
        (falling, lambda x: falling(x) - 0.17, False),
        (falling, apart, False),  # the average follows by more than half
    ],
)
def test_it_takes_a_training_loss_that_falls_alone(held_out: Curve, train: Curve, expected: bool, seed: int) -> None:
    points = curve({"web": held_out, "code": held_out}, train=train, seed=seed)
    assert verdict(gap_growing(evidence(points, stages=(FIRST,)))) is expected


def test_the_message_has_the_figures_and_the_repeated_source() -> None:
    points = curve({"web": level(1.8)}, train=line(1.66, 1.62), noise=0.0)
    found = gap_growing(evidence(points, stages=(FIRST,), epochs={"main": 2.1}))
    assert found is not None and found.reason == "Repetition" and "main read 2.1 times" in found.message
    assert "training loss moved by -0.020" in found.message and "the gap is +0.180" in found.message
    found = gap_growing(evidence(points, stages=(FIRST,), epochs={"main": 0.7}))
    assert found is not None and found.reason == "TrainingLossOptimistic"


def test_another_mixture_in_the_next_stage_is_no_growth() -> None:
    before = curve({"web": line(2.0, 1.8)}, train=line(1.9, 1.7))
    points = (*before, *curve({"web": line(1.8, 1.7)}, train=line(1.4, 1.3), span=SECOND))
    verdicts = [verdict(gap_growing(evidence(points[:n]))) for n in range(1, len(points) + 1)]
    assert True not in verdicts and False in verdicts


def test_a_mixture_that_moves_within_the_stage_says_nothing() -> None:
    points = curve({"web": level(1.8)}, train=line(1.66, 1.4))
    assert gap_growing(evidence(points, stages=(replace(FIRST, steady_mixture=False),))) is None


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_short_curve_says_nothing(count: int) -> None:
    assert gap_growing(evidence(curve({"web": level(1.8)}, train=line(1.66, 1.5), count=count))) is None


def test_without_training_losses_or_domains_it_says_nothing() -> None:
    assert gap_growing(evidence(curve({"web": level(1.8)}))) is None
    assert gap_growing(evidence(curve({}, train=line(1.66, 1.5)))) is None


def test_a_training_loss_that_lags_while_all_falls_steeply_is_no_gap() -> None:
    # The mean since the last point is that of weights half an interval older.
    steep: Curve = lambda x: 2.0 + 6.0 / (1 + 40 * x)  # noqa: E731
    lagging: Curve = lambda x: sum(steep(x - part / 400) for part in range(11)) / 11 - 0.1  # noqa: E731
    points = curve({"web": steep}, train=lagging)
    assert True not in [verdict(gap_growing(evidence(points[:n], stages=(FIRST,)))) for n in range(1, 42)]


def test_it_begins_once_and_stays() -> None:
    held: Curve = lambda x: 1.8 - 0.05 * (1 - math.exp(-x / 0.08))  # noqa: E731
    points = curve({"web": held}, train=line(1.66, 1.58), count=100, noise=0.002)
    verdicts = [verdict(gap_growing(evidence(points[:n], stages=(FIRST,)))) for n in range(1, len(points) + 1)]
    assert verdicts[-1] is True and changes(verdicts) == 1
