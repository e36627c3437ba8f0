"""In a later stage domains stay above what they were before its first step."""

import pytest
from skywork_trainer.config import Forgetting, Guards
from skywork_trainer.diagnosis import StageSpan
from skywork_trainer.diagnosis.forgetting import forgetting

from tests.unit.diagnosis.curves import FIRST, SECOND, Curve, changes, curve, evidence, level, line, verdict

# Table 7 of the report: from the checkpoint at 0.5 T on, 1 G tokens of STEM.
TABLE_7 = {"en-web": (1.86, 2.09), "zh-web": (2.08, 2.21)}


def risen(by: float) -> Curve:
    """Rises at the start of the stage, and stays."""
    return lambda x: 2.0 + by * min(x / 0.2, 1.0)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_table_7_of_the_report_is_forgetting(count: int) -> None:
    losses = {name: line(before, after) for name, (before, after) in TABLE_7.items()}
    found = forgetting(evidence(curve(losses | {"stem": line(1.3, 0.9)}, span=SECOND, count=count)))
    assert found is not None and found.found and found.reason == "AboveStageStart"
    assert "en-web 1.86" in found.message and "zh-web 2.0" in found.message and "stem" not in found.message


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("by", "limit", "expected"), [(0.08, 0.05, True), (0.03, 0.05, False), (0.08, 0.2, False), (-0.1, 0.05, False)]
)
def test_the_guard_draws_the_line(by: float, limit: float, expected: bool, seed: int) -> None:
    guards = Guards(forgetting=Forgetting(max_rise=limit))
    points = curve({"web": risen(by)}, span=SECOND, seed=seed)
    assert verdict(forgetting(evidence(points, guards=guards))) is expected


@pytest.mark.parametrize(("until", "expected"), [(1.0, True), (0.5, False)])
def test_the_only_validation_of_a_stage_decides_where_it_is_its_end(until: float, expected: bool) -> None:
    points = curve({"web": line(2.0, 2.0 + 0.08 / until)}, span=SECOND, count=1, until=until)
    assert verdict(forgetting(evidence(points))) is expected


def test_only_the_guarded_domains_count() -> None:
    points = curve({"web": level(2.0), "games": risen(0.3)}, span=SECOND)
    assert verdict(forgetting(evidence(points, guards=Guards(forgetting=Forgetting(domains=("web",)))))) is False
    assert verdict(forgetting(evidence(points))) is True


@pytest.mark.parametrize("height", [0.06, 0.48, 3.0])
def test_a_jump_right_behind_the_switch_that_recovers_is_none(height: float) -> None:
    jump: Curve = lambda x: 2.0 + (height if 0 < x <= 0.025 else 0.0)  # noqa: E731
    points = curve({"web": jump}, span=SECOND)
    verdicts = [verdict(forgetting(evidence(points[:n]))) for n in range(2, len(points) + 1)]
    assert True not in verdicts


def test_a_single_validation_over_the_line_is_waited_for_unless_it_is_far_over() -> None:
    once: Curve = lambda x: 2.0 + (0.07 if 0.49 < x < 0.51 else 0.0)  # noqa: E731
    points = curve({"web": once}, span=SECOND)
    assert True not in [verdict(forgetting(evidence(points[:n]))) for n in range(1, len(points) + 1)]
    far: Curve = lambda x: 2.0 + (0.3 if x > 0.49 else 0.0)  # noqa: E731
    points = curve({"web": far}, span=SECOND)
    assert [verdict(forgetting(evidence(points[:n]))) for n in (20, 21)] == [False, True]


def test_in_the_first_stage_there_is_nothing_to_forget() -> None:
    assert forgetting(evidence(curve({"web": risen(0.5)}, span=FIRST))) is None


def test_before_a_validation_behind_the_start_it_says_nothing() -> None:
    points = curve({"web": risen(0.5)}, span=SECOND)
    assert forgetting(evidence(points[:1])) is None
    assert forgetting(evidence(points[1:])) is None
    assert forgetting(evidence((*curve({"web": level(1.0)}), *points[1:]))) is None
    assert forgetting(evidence(stage="second")) is None


def test_each_stage_is_compared_with_its_own_start() -> None:
    third = StageSpan("third", 20_000, 30_000)
    points = (*curve({"web": risen(0.3)}, span=SECOND), *curve({"web": level(2.3)}, span=third))
    assert verdict(forgetting(evidence(points, stages=(FIRST, SECOND, third)))) is False


def test_what_wavers_about_the_line_does_not_come_and_go() -> None:
    points = curve({"web": risen(0.05)}, span=SECOND, count=200, noise=0.004)
    assert changes([verdict(forgetting(evidence(points[: n + 1]))) for n in range(len(points))]) <= 1


def test_it_ends_when_the_domain_has_come_back() -> None:
    back: Curve = lambda x: 2.0 + (0.1 if 0.2 < x < 0.5 else 0.0)  # noqa: E731
    points = curve({"web": back}, span=SECOND)
    assert verdict(forgetting(evidence(points[:20]))) is True
    assert verdict(forgetting(evidence(points))) is False
