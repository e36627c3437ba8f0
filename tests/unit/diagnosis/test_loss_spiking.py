"""Spikes of the training loss lately, by the same detector that guards the run."""

import math

import pytest
from skywork_trainer.config import Guards, SpikeAction
from skywork_trainer.diagnosis import RecentStep
from skywork_trainer.diagnosis.loss_spiking import loss_spiking

from tests.unit.diagnosis.curves import FIRST, SECOND, changes, evidence, steps, verdict

QUIET = steps(400)


def spiked(at: int, height: float = 1.0, recent: tuple[RecentStep, ...] = QUIET) -> tuple[RecentStep, ...]:
    return tuple(each._replace(loss=each.loss + height) if each.step == at else each for each in recent)


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        (QUIET, False),
        (spiked(399), True),
        (spiked(400), True),
        (spiked(280), True),
        (spiked(250), False),  # more than a window ago
        (spiked(395, height=0.08), False),  # four sigma are not six
        (spiked(395, height=-1.0), False),
    ],
)
def test_a_spike_of_the_newest_window_is_told(recent: tuple[RecentStep, ...], expected: bool) -> None:
    assert verdict(loss_spiking(evidence(steps=recent))) is expected


def test_the_message_names_the_highest_and_what_is_done_about_it() -> None:
    recent = spiked(380, 0.5, spiked(390, 1.5))
    found = loss_spiking(evidence(steps=recent, guards=Guards(spike_action=SpikeAction.SKIP)))
    assert found is not None and found.message.startswith("2 spikes in the last 128 steps: the loss of step 389 is 3.")
    assert "their gradients were dropped" in found.message


def test_it_is_said_for_one_window_and_once() -> None:
    recent = steps(700)
    recent = spiked(300, recent=recent)
    verdicts = [verdict(loss_spiking(evidence(steps=recent[max(n - 512, 0) : n]))) for n in range(1, 701, 8)]
    assert changes(verdicts) == 2
    assert sum(each is True for each in verdicts) * 8 == pytest.approx(128, abs=16)


@pytest.mark.parametrize("height", [0.5, 5.0])
def test_the_jump_at_a_switch_of_stages_is_none(height: float) -> None:
    switch = SECOND.first
    recent = [
        each._replace(loss=each.loss + height * math.exp(-(each.step - switch) / 8)) if each.step > switch else each
        for each in steps(600, first=switch - 300)
    ]
    for newest in range(301, 600, 7):
        assert verdict(loss_spiking(evidence(steps=recent[:newest], stage="second"))) in (None, False)
    assert verdict(loss_spiking(evidence(steps=recent, stage="second"))) is False


def test_in_the_first_steps_of_a_stage_nothing_is_a_spike() -> None:
    recent = steps(200, first=SECOND.first)
    for at, expected in ((60, False), (99, False), (150, True)):
        spiky = spiked(SECOND.first + at, recent=recent)
        assert verdict(loss_spiking(evidence(steps=spiky, stage="second"))) is expected


def test_the_level_of_the_stage_before_is_no_measure_of_this_one() -> None:
    recent = tuple(
        each._replace(loss=each.loss + (1.0 if each.step > SECOND.first else 0.0))
        for each in steps(260, first=SECOND.first - 200)
    )
    assert verdict(loss_spiking(evidence(steps=recent, stage="second", guards=Guards(grace_steps=2)))) is not True


def test_a_new_level_is_no_spike_for_ever() -> None:
    recent = tuple(each._replace(loss=each.loss + (0.5 if each.step > 200 else 0.0)) for each in steps(700))
    assert verdict(loss_spiking(evidence(steps=recent[188:]))) is False


@pytest.mark.parametrize("count", [0, 1, 31, 120])
def test_too_few_steps_say_nothing(count: int) -> None:
    assert loss_spiking(evidence(steps=steps(count, first=FIRST.first))) is None


def test_losses_that_are_no_numbers_are_passed_over() -> None:
    odd = (math.nan, math.inf, -math.inf, 1e300, -1e300)
    recent = [each._replace(loss=odd[each.step % 5]) if each.step > 390 else each for each in QUIET]
    assert verdict(loss_spiking(evidence(steps=recent))) is False
