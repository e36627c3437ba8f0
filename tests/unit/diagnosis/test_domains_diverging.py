"""One domain rises while others fall, beyond noise and for several validations."""

from dataclasses import replace

import pytest
from skywork_trainer.config import CurvePoint
from skywork_trainer.diagnosis import thinned
from skywork_trainer.diagnosis.domains_diverging import domains_diverging

from tests.unit.diagnosis.curves import FIRST, SECOND, Curve, changes, curve, evidence, level, line, verdict


def turning(at: float, rise: float) -> Curve:
    """Falls until `at`, then rises by `rise` to the stage's end."""
    return lambda x: 2.0 - 0.2 * x if x < at else 2.0 - 0.2 * at + rise * (x - at) / (1 - at)


FALLING = {"code": line(1.0, 0.9), "papers": line(1.9, 1.7)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (FALLING | {"web": turning(0.5, 0.1)}, True),
        (FALLING | {"web": turning(0.1, 0.3)}, True),
        (FALLING | {"web": line(2.0, 1.8)}, False),
        (FALLING | {"web": level(2.0)}, False),
        (FALLING | {"web": turning(0.5, 0.012)}, False),  # less than counts
        ({"web": line(2.0, 2.2), "code": line(1.0, 1.1)}, False),  # all rise: no one apart from others
        ({"web": line(2.0, 2.2), "code": level(1.0)}, False),
    ],
)
def test_it_takes_one_that_rises_and_one_that_falls(losses: dict[str, Curve], expected: bool, seed: int) -> None:
    assert verdict(domains_diverging(evidence(curve(losses, seed=seed)))) is expected


def test_the_message_names_domains_and_amounts() -> None:
    found = domains_diverging(evidence(curve(FALLING | {"web": turning(0.5, 0.1)}, noise=0.0)))
    assert found is not None and found.found
    assert "Worse: web 1.9" in found.message and "(+0.09" in found.message
    assert "Meanwhile: papers" in found.message and "code" in found.message
    assert found.reason == "DistributionShift"


def test_repeated_sources_make_it_overfitting_unless_the_mixture_moves() -> None:
    points = curve(FALLING | {"web": turning(0.5, 0.1)})
    often = domains_diverging(evidence(points, epochs={"books": 4.2}))
    assert often is not None and often.reason == "Overfitting" and "books read 4.2 times" in often.message
    moving = replace(FIRST, steady_mixture=False)
    shifted = domains_diverging(evidence(points, epochs={"books": 4.2}, stages=(moving, SECOND)))
    assert shifted is not None and shifted.reason == "DistributionShift"


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_short_curve_says_nothing(count: int) -> None:
    points = curve(FALLING | {"web": line(2.0, 2.5)}, count=count) if count else ()
    assert domains_diverging(evidence(points)) is None


def test_a_single_domain_says_nothing() -> None:
    assert domains_diverging(evidence(curve({"web": line(2.0, 2.5)}))) is None


def test_one_odd_validation_is_passed_over() -> None:
    points = list(curve(FALLING | {"web": line(2.0, 1.9)}))
    for index in (20, len(points) - 1):
        spoilt = list(points)
        spoilt[index] = points[index].model_copy(update={"losses": points[index].losses | {"web": 3.0}})
        assert verdict(domains_diverging(evidence(spoilt))) is False


def test_two_odd_validations_that_are_no_neighbours_are_passed_over() -> None:
    points = list(curve(FALLING | {"web": line(2.0, 2.01)}))
    for index in (len(points) - 3, len(points) - 1):
        points[index] = points[index].model_copy(update={"losses": points[index].losses | {"web": 3.0}})
    assert verdict(domains_diverging(evidence(points))) is False


@pytest.mark.parametrize("seed", range(10))
def test_what_noise_can_do_is_no_rise(seed: int) -> None:
    points = curve({"web": level(2.0), "code": line(3.0, 2.0)}, count=60, noise=0.02, seed=seed)
    assert True not in [verdict(domains_diverging(evidence(points[:n]))) for n in range(8, len(points) + 1)]


def test_a_jump_at_the_switch_of_stages_is_none_of_it() -> None:
    jump: Curve = lambda x: 1.8 if x == 0 else 2.2 - 0.1 * x  # noqa: E731
    before = curve(FALLING | {"web": line(2.0, 1.8)})
    points = (*before, *curve(FALLING | {"web": jump}, span=SECOND))
    assert verdict(domains_diverging(evidence(points))) is False


def test_it_neither_comes_and_goes_with_noise_nor_stays_for_ever() -> None:
    hump: Curve = lambda x: 2.0 - 0.1 * x + (0.05 if 0.3 < x < 0.6 else 0.0)  # noqa: E731
    points = curve(FALLING | {"web": hump}, count=100, noise=0.004)
    verdicts = [verdict(domains_diverging(evidence(points[: n + 1]))) for n in range(len(points))]
    assert changes(verdicts) == 2 and verdicts[-1] is False


def test_thinning_the_curve_does_not_hide_it() -> None:
    whole = curve(FALLING | {"web": turning(0.5, 0.1)}, count=1000)
    kept: tuple[CurvePoint, ...] = ()
    for point in whole:
        kept = thinned((*kept, point), 64)
    assert verdict(domains_diverging(evidence(kept))) is True


def test_a_domain_that_is_measured_every_other_time_still_counts() -> None:
    points = [
        point
        if index % 2
        else point.model_copy(update={"losses": {k: v for k, v in point.losses.items() if k != "web"}})
        for index, point in enumerate(curve(FALLING | {"web": turning(0.5, 0.1)}))
    ]
    assert verdict(domains_diverging(evidence(points))) is True
