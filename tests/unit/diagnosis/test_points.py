"""Validations become points, and a run carries about only so many of them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.config import CurvePoint, DomainLoss
from skywork_trainer.curve import EventRecord, Part, Record, StepRecord, ValidationRecord
from skywork_trainer.diagnosis import curve_point, curve_points, thinned
from skywork_trainer.diagnosis.points import DENSE_POINTS


def point(step: int, *, stage_start: bool = False) -> CurvePoint:
    return CurvePoint(step=step, stage="s", losses={"web": 2.0}, stage_start=stage_start)


def appended(points: list[CurvePoint], most: int) -> tuple[CurvePoint, ...]:
    """As a run does it: one at a time, thinned each time."""
    kept: tuple[CurvePoint, ...] = ()
    for each in points:
        kept = thinned((*kept, each), most)
    return kept


@st.composite
def curves(draw: st.DrawFn) -> list[CurvePoint]:
    gaps = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=120))
    starts = draw(st.sets(st.integers(0, 119), max_size=6))
    step, points = 0, []
    for index, gap in enumerate(gaps):
        step += gap
        points.append(point(step, stage_start=index in starts))
    return points


@given(curves(), st.integers(2, 64))
def test_a_thinned_curve_is_a_part_of_the_whole_with_both_ends(points: list[CurvePoint], most: int) -> None:
    for kept in (thinned(points, most), appended(points, most)):
        assert len(kept) == min(len(points), most)
        assert kept[0] is points[0] and kept[-1] is points[-1]
        places = iter(points)
        assert all(any(each is other for other in places) for each in kept)


@given(curves(), st.integers(2, 64))
def test_thinning_twice_is_thinning_once(points: list[CurvePoint], most: int) -> None:
    once = thinned(points, most)
    assert thinned(once, most) == once


@given(curves(), st.integers(20, 64))
def test_starts_of_stages_and_the_newest_stay(points: list[CurvePoint], most: int) -> None:
    for kept in (thinned(points, most), appended(points, most)):
        assert [each for each in kept if each.stage_start] == [each for each in points if each.stage_start]
        # Six starts of stages and the first point have their places before the newest.
        dense = min(DENSE_POINTS, most // 2, most - 8)
        assert kept[-dense:] == tuple(points[-dense:])


@given(curves(), st.integers(2, 64))
def test_what_was_dropped_does_not_come_back_and_a_new_point_drops_at_most_one(
    points: list[CurvePoint], most: int
) -> None:
    kept: tuple[CurvePoint, ...] = ()
    for each in points:
        before, kept = kept, thinned((*kept, each), most)
        assert {id(one) for one in kept} <= {id(one) for one in (*before, each)}
        assert len(kept) == min(len(before) + 1, most)


@pytest.mark.parametrize("count", [129, 200, 1_000, 1_615])
def test_the_spread_is_even(count: int) -> None:
    points = [point(10 * index) for index in range(count)]
    for kept in (thinned(points, 128), appended(points, 128)):
        gaps = [right.step - left.step for left, right in pairwise(kept[:-DENSE_POINTS])]
        assert max(gaps) <= 4 * 10 * math.ceil(count / 128)
        newest = range(10 * (count - DENSE_POINTS), 10 * count, 10)
        assert [each.step for each in kept[-DENSE_POINTS:]] == list(newest)


def test_starts_of_stages_stay_before_the_newest_where_there_is_room_for_few() -> None:
    points = [point(10 * index, stage_start=index in (5, 6, 7, 20, 21)) for index in range(40)]
    for kept in (thinned(points, 8), appended(points, 8)):
        assert [each.step for each in kept if each.stage_start] == [50, 60, 70, 200, 210]


def test_most_of_what_is_old_stays_in_place_when_a_point_comes() -> None:
    kept = appended([point(10 * index) for index in range(1_000)], 128)
    later = kept
    for index in range(1_000, 1_020):
        later = thinned((*later, point(10 * index)), 128)
    assert len({each.step for each in kept} & {each.step for each in later}) >= 128 - 20


def test_a_long_curve_is_thinned_at_once() -> None:
    assert len(thinned([point(step) for step in range(20_000)])) == 128


@pytest.mark.parametrize("most", [-1, 0, 1])
def test_fewer_than_two_points_are_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 points, got most={most}"):
        thinned([point(1)], most)


def domain(name: str, loss: float, step: int = 10) -> DomainLoss:
    return DomainLoss(domain=name, loss=loss, tokens=100, step=step)


def test_a_point_has_what_this_validation_measured() -> None:
    made = curve_point(
        step=10,
        stage="s",
        domains=[domain("web", 2.0), domain("old", 1.0, step=5), domain("odd", math.nan), domain("far", math.inf)],
        train_losses=[2.0, math.nan, 1.0],
    )
    assert made == CurvePoint(step=10, stage="s", losses={"web": 2.0}, train_loss=1.5)
    assert CurvePoint.model_validate_json(made.model_dump_json()) == made


def test_without_a_step_since_the_point_before_there_is_no_training_loss() -> None:
    for losses in ([], [math.nan]):
        assert curve_point(step=1, stage="s", domains=[], train_losses=losses).train_loss is None


def test_a_recorded_curve_gives_the_points_of_the_run() -> None:
    def trained(step: int, loss: float) -> StepRecord:
        return StepRecord(step=step, stage="s", time=0.0, loss=loss, rate=1e-3, norm=1.0, seconds=1.0)

    def validated(step: int, *, stage_start: bool = False) -> ValidationRecord:
        domains = (domain("web", 3.0 - step / 10, step),)
        return ValidationRecord(step=step, stage="s", time=0.0, seconds=1.0, stage_start=stage_start, domains=domains)

    part = Part(id="b", parent="a", first_step=0, last_step=3, global_batch_tokens=1, run="r")
    event = EventRecord(step=1, time=0.0, reason="Spike", message="")
    records: list[Record] = [
        part,
        validated(0, stage_start=True),
        trained(1, 4.0),
        event,
        trained(2, 2.0),
        validated(2),
        part,
        trained(3, 1.0),
        validated(3),
    ]
    assert curve_points(records) == (
        CurvePoint(step=0, stage="s", losses={"web": 3.0}, stage_start=True),
        CurvePoint(step=2, stage="s", losses={"web": 2.8}, train_loss=3.0),
        CurvePoint(step=3, stage="s", losses={"web": 2.7}, train_loss=1.0),
    )
