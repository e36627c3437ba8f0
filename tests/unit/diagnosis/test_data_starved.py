"""Steps that wait for data, and stalls that are none of that."""

import pytest
from skywork_trainer.diagnosis.data_starved import data_starved

from tests.unit.diagnosis.curves import Curve, changes, evidence, level, steps, verdict


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (level(0.0), False),
        (level(0.02), False),
        (level(0.10), True),
        (level(0.90), True),
        (lambda index: 5.0 if index == 190 else 0.0, False),  # one stall
        (lambda index: 5.0 if index in (185, 190) else 0.0, False),
        (lambda index: 5.0 if index % 10 == 0 else 0.0, True),  # every part of a shard is waited for
        (lambda index: 0.3 if index < 60 else 0.0, False),  # long ago
    ],
)
def test_a_twentieth_of_the_time_is_the_line(wait: Curve, expected: bool) -> None:
    recent = steps(200, wait=wait, seconds=lambda index: 1.0 + wait(index))
    assert verdict(data_starved(evidence(steps=recent))) is expected


def test_the_message_has_the_share_and_the_wait() -> None:
    found = data_starved(evidence(steps=steps(200, wait=level(0.25), noise=0.0)))
    assert found is not None and "25% of the time of the last 64 steps" in found.message
    assert "0.25 s a step" in found.message


def test_milliseconds_are_nobodys_trouble() -> None:
    assert verdict(data_starved(evidence(steps=steps(200, seconds=level(0.01), wait=level(0.002))))) is False


def test_the_first_steps_of_a_generation_and_the_world_before_do_not_count() -> None:
    cold: Curve = lambda index: 30.0 if index <= 108 else 0.0  # noqa: E731
    recent = steps(200, wait=cold, seconds=lambda index: 1.0 + cold(index))
    assert verdict(data_starved(evidence(steps=recent, generation_step=100))) is False
    assert verdict(data_starved(evidence(steps=recent[:-20], generation_step=0))) is False
    assert verdict(data_starved(evidence(steps=recent[:150], generation_step=0))) is True


@pytest.mark.parametrize("count", [0, 1, 71])
def test_too_few_steps_say_nothing(count: int) -> None:
    assert data_starved(evidence(steps=steps(count, wait=level(0.5)))) is None
    assert data_starved(evidence(steps=steps(300, wait=level(0.5)), generation_step=300 - count)) is None


def test_what_wavers_about_the_line_does_not_come_and_go() -> None:
    wait: Curve = lambda index: 0.055 if index // 40 % 2 else 0.042  # noqa: E731
    recent = steps(500, wait=wait, noise=0.01)
    assert changes([verdict(data_starved(evidence(steps=recent[:n]))) for n in range(1, 501)]) <= 1
