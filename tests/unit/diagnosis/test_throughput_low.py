"""Steps slower than the same world has shown, for long."""

import pytest
from skywork_trainer.diagnosis import RecentStep, sustained_seconds
from skywork_trainer.diagnosis.throughput_low import throughput_low

from tests.unit.diagnosis.curves import Curve, changes, evidence, level, steps, verdict


def slower(by: float, behind: int, until: int = 10**6) -> Curve:
    return lambda index: by if behind < index <= until else 1.0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (level(1.0), False),
        (slower(1.5, 200), True),
        (slower(1.25, 200), True),
        (slower(1.15, 200), False),
        (slower(0.6, 200), False),
        (slower(3.0, 385), False),  # too short to tell
        (slower(3.0, 200, 260), False),  # over
        (slower(40.0, 0, 8), False),  # first steps compile
        (lambda index: 9.0 if index % 10 == 0 else 1.0, False),  # a few slow ones
    ],
)
def test_it_takes_a_fifth_more_for_a_while(seconds: Curve, expected: bool) -> None:
    assert verdict(throughput_low(evidence(steps=steps(400, seconds=seconds)))) is expected


def test_the_best_of_the_generation_is_remembered_by_the_caller() -> None:
    recent = steps(512, first=5_000, seconds=level(1.5), noise=0.0)
    assert verdict(throughput_low(evidence(steps=recent, generation_step=100))) is False
    found = throughput_low(evidence(steps=recent, generation_step=100, best_step_seconds=1.0))
    assert found is not None and found.found and "1.50 times the 1 s" in found.message


def test_another_world_has_another_best() -> None:
    fast, slow = steps(200), steps(200, first=200, seconds=level(2.0))
    assert verdict(throughput_low(evidence(steps=(*fast, *slow), generation_step=200))) is False
    assert verdict(throughput_low(evidence(steps=(*fast, *slow), generation_step=0))) is True


@pytest.mark.parametrize("count", [0, 1, 103])
def test_too_few_steps_say_nothing(count: int) -> None:
    assert throughput_low(evidence(steps=steps(count), best_step_seconds=0.1)) is None


def test_the_message_tells_when_it_is_the_data() -> None:
    recent = steps(400, seconds=slower(2.0, 200), wait=lambda index: 1.0 if index > 200 else 0.0, noise=0.0)
    found = throughput_low(evidence(steps=recent))
    assert found is not None and "50% of it waits for data" in found.message


def test_what_wavers_about_the_line_does_not_come_and_go() -> None:
    seconds: Curve = lambda index: 1.0 if index < 120 else 1.22 if index // 40 % 2 else 1.15  # noqa: E731
    recent = steps(500, seconds=seconds, noise=0.01)
    assert changes([verdict(throughput_low(evidence(steps=recent[:n]))) for n in range(1, 501, 3)]) <= 1


def test_what_is_sustained_is_the_median_of_the_newest_steps() -> None:
    recent = steps(72, noise=0.0)
    assert sustained_seconds(recent[:71], 0) is None
    assert sustained_seconds(recent, 0) == 1.0
    assert sustained_seconds(recent, 1) is None
    assert sustained_seconds((*recent[:-1], RecentStep(72, 2.0, 1e6)), 0) == 1.0
