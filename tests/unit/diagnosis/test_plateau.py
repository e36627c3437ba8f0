"""The average no longer falls beyond noise, over a long enough stretch of tokens."""

import math
from dataclasses import replace

import pytest
from skywork_trainer.config import CurvePoint, Diagnosis, Schedule
from skywork_trainer.diagnosis import thinned
from skywork_trainer.diagnosis.plateau import plateau

from tests.unit.diagnosis.curves import FIRST, SECOND, Curve, changes, curve, evidence, level, line, verdict


def levelling(x: float) -> float:
    return 2.0 - 0.5 * (1 - math.exp(-x / 0.08))


def scaling(x: float) -> float:
    """Straight against the logarithm of the tokens: what a run does that has not saturated."""
    return 2.0 - 0.09 * math.log(x + 1e-3)


def late_cosine(x: float) -> float:
    """Slow while the rate is high, and slow again at the very end."""
    return 2.3 - 0.08 * math.log(x + 1e-2) - 0.06 * (1 - math.cos(math.pi * x)) / 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.002, 0.006])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (levelling, True),
        (level(2.0), True),
        (line(2.0, 2.1), True),  # rises: no better
        (scaling, False),
        (late_cosine, False),
        (line(2.0, 1.8), False),
    ],
)
def test_a_level_average_is_one_and_a_slow_decline_is_none(
    shape: Curve, expected: bool, noise: float, seed: int
) -> None:
    points = curve({"web": shape, "code": shape}, span=FIRST, noise=noise, seed=seed, count=60)
    assert verdict(plateau(evidence(points, stages=(FIRST,)))) is expected


def test_a_slow_decline_raises_no_alarm_at_any_time() -> None:
    points = curve({"web": late_cosine}, count=120, noise=0.004, seed=3)
    assert True not in [verdict(plateau(evidence(points[:n], stages=(FIRST,)))) for n in range(1, len(points) + 1)]


def test_it_begins_once_and_stays() -> None:
    points = curve({"web": levelling}, count=120, noise=0.004)
    verdicts = [verdict(plateau(evidence(points[:n], stages=(FIRST,)))) for n in range(1, len(points) + 1)]
    assert verdicts[0] is None and verdicts[-1] is True and changes(verdicts) == 1
    assert 0.5 < verdicts.index(True) / len(points) < 0.8


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("shape", "noise"), [(level(2.0), 0.08), (level(2.0), 0.03), (line(2.0, 1.9), 0.03)])
def test_what_noise_hides_is_not_claimed(shape: Curve, noise: float, seed: int) -> None:
    points = curve({"web": shape}, noise=noise, seed=seed)
    assert True not in [verdict(plateau(evidence(points[:n], stages=(FIRST,)))) for n in range(10, 42)]


@pytest.mark.parametrize("before", [True, False])
def test_what_hangs_in_the_balance_stays_as_it_was(before: bool) -> None:
    points = curve({"web": line(2.0, 1.97)}, noise=0.006, seed=1)
    said = Diagnosis(type="Plateau", found=before, reason="Before", message="before")
    assert verdict(plateau(evidence(points, stages=(FIRST,), before=(said,)))) is before


def test_short_stages_and_short_stretches_say_nothing() -> None:
    assert plateau(evidence()) is None
    assert plateau(evidence(curve({"web": level(2.0)}, count=5))) is None
    # A twentieth of the run is the least: here 1,000 steps of 20,000.
    assert plateau(evidence(curve({"web": level(2.0)}, count=30, until=0.08))) is None
    short = replace(SECOND, last=10_500)
    points = curve({"web": level(2.0)}, span=short, count=30)
    assert plateau(evidence(points, stages=(FIRST, short))) is None


def test_the_way_back_from_a_warm_up_is_not_looked_at() -> None:
    warm = replace(FIRST, warm=8_000)
    assert plateau(evidence(curve({"web": level(2.0)}), stages=(warm,))) is None


@pytest.mark.parametrize(
    ("changed", "reason", "advice"),
    [
        ({"epochs": {"main": 3.2, "books": 1.0}}, "DataExhausted", "main read 3.2 times), and the learning rate is"),
        ({"epochs": {"main": 1.2}}, "LearningRateExhausted", "stays at 6e-05"),
        ({"learning_rate": 3e-4}, "LearningRateHigh", "has still to fall to 6e-05"),
        ({"learning_rate": 3e-4, "epochs": {"main": 2.0}}, "DataExhausted", "main read 2.0 times): add"),
    ],
)
def test_the_advice_follows_what_is_exhausted(changed: dict[str, object], reason: str, advice: str) -> None:
    span = replace(FIRST, schedule=Schedule.COSINE)
    found = plateau(evidence(curve({"web": level(2.0)}), stages=(span,), **changed))
    assert found is not None and found.reason == reason and advice in found.message


def test_unequal_spacing_changes_nothing() -> None:
    early = [x / 400 for x in range(200)]
    late = [0.5 + x / 20 for x in range(1, 11)]
    for shape, expected in ((levelling, True), (scaling, False)):
        points = curve({"web": shape}, at=[*early, *late], noise=0.003)
        assert verdict(plateau(evidence(points, stages=(FIRST,)))) is expected
        points = curve({"web": shape}, at=[1 - x for x in reversed([*early, *late])], noise=0.003)
        assert verdict(plateau(evidence(points, stages=(FIRST,)))) is expected


def test_a_thinned_curve_gives_the_same_verdict() -> None:
    for shape, expected in ((levelling, True), (scaling, False)):
        kept: tuple[CurvePoint, ...] = ()
        for point in curve({"web": shape}, count=1500, noise=0.003):
            kept = thinned((*kept, point))
        assert verdict(plateau(evidence(kept, stages=(FIRST,)))) is expected


def test_a_domain_that_vanishes_does_not_move_the_average() -> None:
    points = list(curve({"web": scaling, "hard": lambda x: 2 + scaling(x)}, count=60))
    for index in range(40, len(points)):
        points[index] = points[index].model_copy(update={"losses": {"web": points[index].losses["web"]}})
    found = plateau(evidence(points, stages=(FIRST,)))
    assert found is not None and not found.found and "of 1 domains" in found.message
