"""Noise, trends and averages of curves with gaps, odd values and uneven steps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.config import CurvePoint
from skywork_trainer.diagnosis.series import LEAST_NOISE, aligned, is_measured, noise, of_domain, running_median, trend
from skywork_trainer.diagnosis.wording import listed, repeated, times_read, tokens


def points(*losses: dict[str, float]) -> list[CurvePoint]:
    return [CurvePoint(step=10 * index, stage="s", losses=each) for index, each in enumerate(losses)]


@pytest.mark.parametrize("sigma", [0.003, 0.05])
@pytest.mark.parametrize("slope", [0.0, -3.0])
def test_noise_is_that_of_the_points_whatever_their_trend_and_spacing(sigma: float, slope: float) -> None:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(40):
        steps_N = np.cumsum(draw.uniform(1, 30, 40))
        found.append(noise(steps_N, slope * steps_N / 1000 + draw.normal(0, sigma, 40)))
    assert np.median(found) == pytest.approx(sigma, rel=0.15)


def test_a_line_has_the_least_noise() -> None:
    assert noise(np.arange(9.0), np.arange(9.0)) == LEAST_NOISE == noise(np.zeros(2), np.zeros(2))
    assert noise(np.zeros(9), np.ones(9)) == LEAST_NOISE


def test_a_trend_is_the_slope_with_its_error_and_passes_over_outliers() -> None:
    draw = np.random.default_rng(0)
    x_N = np.linspace(0, 1, 50)
    off = []
    for _ in range(200):
        y_N = 2 - 0.3 * x_N + draw.normal(0, 0.01, 50)
        y_N[draw.integers(0, 50)] += 1.0
        found = trend(x_N, y_N)
        assert found is not None and found.error < 0.01
        off.append((found.slope + 0.3) / found.error)
    assert np.std(off) == pytest.approx(1.0, abs=0.15) and abs(np.mean(off)) < 0.2


def test_few_points_and_points_of_one_step_have_no_trend() -> None:
    assert trend(np.arange(3.0), np.arange(3.0)) is None
    assert trend(np.ones(8), np.arange(8.0)) is None


@given(st.floats(-1e4, 1e4), st.lists(st.floats(-1, 1), min_size=4, max_size=30))
def test_a_constant_moves_no_trend(constant: float, values: list[float]) -> None:
    y_N = np.array(values)
    before, after = trend(np.arange(float(len(y_N))), y_N), trend(np.arange(float(len(y_N))), y_N + constant)
    assert before is not None and after is not None
    assert after.slope == pytest.approx(before.slope, abs=1e-2)


def test_gaps_are_filled_and_what_came_late_or_vanished_is_left_out() -> None:
    curve = points(*({"web": 3.0 - 0.1 * n} | ({"late": 1.0} if n > 5 else {"gone": 1.0}) for n in range(10)))
    curve[4] = curve[4].model_copy(update={"losses": {"web": math.nan, "gone": 1.0}})
    names, steps_N, losses_DN = aligned(curve)
    assert names == ("web",) and steps_N[4] == 40
    assert losses_DN[0] == pytest.approx([3.0 - 0.1 * n for n in range(10)])


def test_a_domain_without_a_loss_has_an_empty_curve() -> None:
    steps_N, losses_N = of_domain(points({"web": math.nan}, {}, {"web": 2.0}), "web")
    assert steps_N.tolist() == [20.0] and losses_N.tolist() == [2.0]
    assert aligned([])[0] == () and aligned(points({}, {}))[2].shape == (0, 2)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -math.inf, 1e7])
def test_what_is_no_loss_was_not_measured(loss: float | None) -> None:
    assert not is_measured(loss) and is_measured(0.0)


def test_a_running_median_passes_over_one_odd_point() -> None:
    assert running_median(np.array([1.0, 1.0, 9.0, 1.0, 1.0])).tolist() == [1.0, 1.0, 1.0]
    assert running_median(np.array([1.0, 2.0])).tolist() == []


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 tokens"),
        (999, "999 tokens"),
        (1000, "1 k tokens"),
        (16_777_216, "16.8 M tokens"),
        (999_900_000_000, "1 T tokens"),
        (3.23e12, "3.23 T tokens"),
        (-2e9, "-2 G tokens"),
        (math.nan, "? tokens"),
    ],
)
def test_tokens_are_written_with_three_figures(count: float, words: str) -> None:
    assert tokens(count) == words


def test_long_lists_are_counted() -> None:
    assert listed("abc") == "a, b, c" and listed("abcdefg", most=2) == "a, b and 5 more"


def test_sources_that_are_repeated_come_most_often_read_first() -> None:
    epochs = {"a": 2.0, "b": 3.51, "c": 1.9, "d": math.nan}
    assert times_read(repeated(epochs, 2.0)) == "b read 3.5 times, a read 2.0 times"
