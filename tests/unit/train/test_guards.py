"""Spikes of the loss, and what a rollback returns to and leaves out."""

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from skywork_trainer.config import Guards
from skywork_trainer.guards import (
    RECALLED_WINDOWS,
    Interval,
    Rollback,
    Spike,
    SpikeDetector,
    is_abandoned,
    is_skipped,
    plan_rollback,
)

GUARDS = Guards(window_steps=64, grace_steps=10, rollback_steps=20, skip_steps=50)


def falling(steps: int, seed: int = 0) -> list[float]:
    """A curve as training draws it: it falls, and is noisy."""
    draw = random.Random(seed)
    return [2.0 + 6.0 / (1 + step / 40) + draw.gauss(0, 0.05) for step in range(steps)]


def spikes(curve: list[float], guards: Guards = GUARDS, start: int = 0) -> list[int]:
    detector = SpikeDetector(guards, stage_start=start)
    return [step for step, loss in enumerate(curve, start) if detector.see(step, loss)]


@given(st.integers(0, 10**6))
def test_a_falling_noisy_curve_has_no_spike(seed: int) -> None:
    assert spikes(falling(600, seed)) == []


@pytest.mark.parametrize(
    ("at", "by", "found"),
    [
        pytest.param(300, 3.0, [300], id="far above"),
        pytest.param(300, 0.1, [], id="within the noise"),
        pytest.param(300, -3.0, [], id="far below"),
        pytest.param(5, 30.0, [], id="in the grace after the stage's start"),
        pytest.param(25, 30.0, [], id="before enough steps are known"),
        pytest.param(300, math.inf, [], id="not finite: the engine's to refuse"),
    ],
)
def test_a_loss_far_above_those_before_it_is_a_spike(at: int, by: float, found: list[int]) -> None:
    curve = falling(400)
    curve[at] += by
    assert spikes(curve) == found


def test_a_spike_does_not_hide_the_next_one() -> None:
    curve = falling(400)
    for step in (300, 301, 310):
        curve[step] += 3.0
    assert spikes(curve) == [300, 301, 310]


def test_a_level_that_stays_is_a_spike_for_a_quarter_of_the_window_only() -> None:
    curve = falling(400)
    curve[300:] = [loss + 3.0 for loss in curve[300:]]
    assert spikes(curve) == list(range(300, 316))


@given(st.integers(0, 10**6), st.integers(0, 300), st.sets(st.integers(0, 400), max_size=12))
def test_a_detector_that_is_shown_the_last_steps_judges_as_if_nothing_had_been_interrupted(
    seed: int, cut: int, high: set[int]
) -> None:
    guards = Guards(window_steps=16, grace_steps=10, rollback_steps=20, skip_steps=50)
    shown = max(cut - RECALLED_WINDOWS * guards.window_steps, 0)
    curve = [loss + 3.0 * (step in high) for step, loss in enumerate(falling(401, seed))]
    # What was one in the first window that is shown cannot be told from the level there.
    assume(not shown or not high & set(range(shown, shown + 2 * guards.window_steps)))
    whole, second = SpikeDetector(guards, stage_start=0), SpikeDetector(guards, stage_start=0)
    for step in range(cut):
        whole.see(step, curve[step])
    for step in range(shown, cut):
        second.see(step, curve[step])
    for step in range(cut, len(curve)):
        assert whole.see(step, curve[step]) == second.see(step, curve[step])


def test_the_jump_at_a_stage_switch_is_none() -> None:
    assert spikes([loss + 2 for loss in falling(200)], start=5000) == []


def test_a_flat_curve_has_no_spike_of_a_thousandth() -> None:
    assert spikes([2.0] * 200 + [2.003] + [2.0] * 20) == []


def rollback(**changes: object) -> Rollback:
    fields = {
        "number": 1, "time": 1.0, "saved_by": (9, 4), "spike_step": 300, "loss": 9.0, "mean": 3.0, "deviation": 0.1,
        "to_step": 250, "skip": Interval(280, 330),
    }  # fmt: skip
    return Rollback.model_validate(fields | changes)


def planned(spike_step: int = 300, saved: tuple[int, ...] = (0, 100, 250, 290), end: int = 1000) -> Rollback | None:
    spike = Spike(spike_step, 9.0, 3.0, 0.1)
    return plan_rollback(spike, GUARDS, saved_steps=saved, stage_end=end, past=(), now=1.0, saved_by=(9, 4))


def test_a_rollback_returns_to_the_newest_checkpoint_before_what_it_leaves_out() -> None:
    assert planned() == rollback()
    assert planned(end=310) == rollback(skip=Interval(280, 310))
    assert planned(saved=(290,)) is None
    first = planned(spike_step=15)
    assert first is not None and (first.to_step, first.skip) == (0, Interval(0, 50))


@pytest.mark.parametrize(
    ("saved_by", "step", "abandoned"),
    [
        ((9, 4), 290, True),
        ((9, 4), 250, False),
        ((9, 3), 251, True),
        ((9, 5), 290, False),
        ((9, 2), 100, False),
        ((8, 7), 290, True),
        ((10, 1), 290, False),
    ],
)
def test_what_was_saved_behind_the_checkpoint_returned_to_is_abandoned(
    saved_by: tuple[int, int], step: int, abandoned: bool
) -> None:
    assert is_abandoned(saved_by, step, [rollback()]) == abandoned


def test_the_steps_around_the_spike_are_left_out_and_no_others() -> None:
    two = [rollback(), rollback(number=2, skip=Interval(400, 402))]
    assert [step for step in range(1000) if is_skipped(step, two)] == [*range(280, 330), 400, 401]


def test_a_rollback_that_would_train_the_spike_again_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"guards.rollback.skip \(100 steps\) must be more than"):
        Guards(rollback_steps=100, skip_steps=100)
