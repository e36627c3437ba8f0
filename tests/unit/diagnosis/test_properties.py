"""What holds of all detectors for any evidence."""

import math
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skywork_trainer.config import CurvePoint, Forgetting, Guards, Schedule
from skywork_trainer.diagnosis import DETECTORS, Evidence, RecentStep, StageSpan, diagnose
from skywork_trainer.diagnosis.series import holds

from tests.unit.diagnosis.curves import FIRST, SECOND, curve, evidence, line, steps

TYPES = {
    "DomainsDiverging",
    "Forgetting",
    "Plateau",
    "GapGrowing",
    "LossSpiking",
    "DataStarved",
    "ThroughputLow",
    "ValidationIncomplete",
}
ANY = st.floats(allow_nan=True, allow_infinity=True)
LOSS = st.floats(0.5, 12.0) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300, -1e300]) | ANY
NAMES = ("code", "web", "papers")
bools = st.lists(st.booleans(), max_size=40)


@st.composite
def any_evidence(draw: st.DrawFn) -> Evidence:
    """Any that is well formed: points and steps in order, stages that follow each other, figures as odd as can be."""
    ends = sorted(draw(st.lists(st.integers(1, 3_000), min_size=1, max_size=3, unique=True)))
    spans = tuple(
        StageSpan(
            f"stage-{index}",
            first,
            last,
            warm=draw(st.integers(first, last)),
            peak_rate=draw(ANY),
            final_rate=draw(ANY),
            schedule=draw(st.sampled_from(Schedule)),
            steady_mixture=draw(st.booleans()),
        )
        for index, (first, last) in enumerate(zip([0, *ends], ends, strict=False))
    )
    points: list[CurvePoint] = []
    for span in spans:
        at = sorted(draw(st.lists(st.integers(span.first, span.last), max_size=30)))
        domains = draw(st.sets(st.sampled_from(NAMES)))
        for index, step in enumerate(at):
            here = domains if draw(st.integers(0, 9)) else domains - {"web"}
            points.append(
                CurvePoint(
                    step=step,
                    stage=span.name,
                    losses={name: draw(LOSS) for name in sorted(here)},
                    train_loss=draw(st.none() | LOSS),
                    stage_start=index == 0 and draw(st.booleans()),
                )
            )
    newest = max([*(each.step for each in points), draw(st.integers(0, ends[-1]))])
    pattern = draw(st.lists(st.tuples(LOSS, ANY, ANY), min_size=1, max_size=7))
    count = draw(st.integers(0, min(newest, 300)))
    return Evidence(
        stages=spans,
        stage=draw(st.sampled_from([span.name for span in spans] + ["unknown"])),
        step=newest,
        tokens_per_step=draw(st.integers(1, 10**9)),
        points=tuple(points),
        steps=tuple(RecentStep(newest - count + n + 1, *pattern[n % len(pattern)]) for n in range(count)),
        generation_step=draw(st.integers(0, newest)),
        best_step_seconds=draw(st.none() | ANY),
        epochs=draw(st.dictionaries(st.sampled_from(("main", "stem")), ANY)),
        guards=Guards(window_steps=draw(st.integers(8, 64)), forgetting=Forgetting(domains=("web",))),
        learning_rate=draw(ANY),
        domains=draw(st.sampled_from([(), NAMES])),
        unmeasured=draw(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=5))),
        cut=tuple(draw(st.sets(st.sampled_from(NAMES)))),
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_evidence())
def test_no_evidence_makes_a_detector_fail(given_evidence: Evidence) -> None:
    found = diagnose(given_evidence)
    assert len({each.type for each in found}) == len(found) and {each.type for each in found} <= TYPES
    for each in found:
        assert each.message and each.reason.isalnum() and each.reason[0].isupper()
    assert diagnose(given_evidence) == found


@settings(max_examples=60, deadline=None)
@given(
    shift=st.floats(-1.0, 5.0),
    slope=st.floats(-0.5, 0.5),
    other=st.floats(-0.5, 0.5),
    train=st.floats(-0.5, 0.5),
    seed=st.integers(0, 3),
)
def test_a_constant_added_to_all_losses_changes_no_verdict(
    shift: float, slope: float, other: float, train: float, seed: int
) -> None:
    losses = {"web": line(2.0, 2.0 + slope), "code": line(2.0, 2.0 + other)}
    points = curve(losses, span=SECOND, train=line(2.0, 2.0 + train), seed=seed)
    moved = [
        point.model_copy(
            update={
                "losses": {name: loss + shift for name, loss in point.losses.items()},
                "train_loss": None if point.train_loss is None else point.train_loss + shift,
            }
        )
        for point in points
    ]
    before, after = diagnose(evidence(points)), diagnose(evidence(moved))
    assert [(each.type, each.found, each.reason) for each in before] == [
        (each.type, each.found, each.reason) for each in after
    ]


@given(st.integers(0, 40))
def test_old_stages_do_not_change_what_is_said_of_this_one_but_for_its_place(count: int) -> None:
    before = curve({"web": line(9.0, 2.0)}, span=FIRST, count=max(count, 1))
    now = curve({"web": line(2.0, 2.2), "code": line(1.0, 0.8)}, span=SECOND)
    assert diagnose(evidence(now)) == diagnose(evidence((*before, *now)))


def test_all_types_are_said_where_there_is_enough_to_see() -> None:
    points = curve({"web": line(2.0, 1.8), "code": line(1.0, 0.9)}, span=SECOND, train=line(2.0, 1.8))
    told = diagnose(evidence(points, steps(400, first=19_600)))
    assert {each.type for each in told} == TYPES and len(DETECTORS) == len(TYPES)
    assert not any(each.found for each in told)


def test_nothing_recorded_says_nothing() -> None:
    assert diagnose(evidence()) == ()
    assert diagnose(replace(evidence(), stage="unknown")) == ()


@given(bools, st.integers(1, 4))
def test_a_condition_that_enters_and_leaves_needs_as_many_in_a_row(flags: list[bool], times: int) -> None:
    told = holds(flags, [not flag for flag in flags], times=times)
    if len(flags) >= times and len(set(flags[-times:])) == 1:
        assert told is flags[-1]
    if not any(all(flags[n : n + times]) for n in range(len(flags) - times + 1)):
        assert told is False


@given(bools, st.integers(1, 4), st.integers(0, 20))
def test_what_neither_enters_nor_leaves_changes_nothing(flags: list[bool], times: int, more: int) -> None:
    leaves = [not flag for flag in flags]
    assert holds(flags, leaves, times=times) is holds(
        [*flags, *[False] * more], [*leaves, *[False] * more], times=times
    )


@given(bools, st.integers(1, 4), st.booleans())
def test_what_was_said_before_stays_until_as_many_in_a_row_say_otherwise(
    flags: list[bool], times: int, before: bool
) -> None:
    told = holds(flags, [not flag for flag in flags], times=times, before=before)
    sure = len(flags) >= times and len(set(flags[-times:])) == 1
    assert told is (flags[-1] if sure else before)
    assert holds([False] * 9, [False] * 9, times=times, before=before) is before


def test_one_at_once_begins_a_condition_and_only_the_newest_count_behind_what_was_said() -> None:
    none = [False] * 4
    assert holds(none, none, times=2, at_once=[False, True, False, False])
    assert holds(none, [False, False, True, True], times=2, at_once=[False, True, False, False]) is False
    assert holds(none, none, times=2, at_once=[True, False, False, False], before=False) is False
    assert holds(none, none, times=2, at_once=[False, False, False, True], before=False)
