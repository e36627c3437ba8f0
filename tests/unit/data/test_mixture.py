import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.config import LearningRate, MixtureEntry, Point, RunConfig, Schedule, Shape, Share, Stage
from skywork_trainer.data import mixture
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.mixture import Draw, Plan, StagePlan

POWER = {Shape.CONSTANT: None, Shape.LINEAR: 1, Shape.QUADRATIC: 2}


def stage(name: str, sequences: int, *entries: tuple[str, Share | None]) -> Stage:
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=1e-3)
    return Stage(
        name=name,
        tokens=sequences * 8,
        learning_rate=rate,
        mixture=tuple(MixtureEntry(source=source, share=share) for source, share in entries),
    )


def plan(*stages: Stage, sizes: dict[str, int] | None = None, limits: dict[str, tuple[int, str]] | None = None) -> Plan:
    sources = [{"name": name, "uri": "file:///s"} for name in "abcdefgh"]
    for source in sources:
        if limits and source["name"] in limits:
            source["max_epochs"], source["beyond_limit"] = limits[source["name"]]  # type: ignore[assignment]
    return Plan(
        RunConfig.model_validate(
            {
                "run": "r",
                "namespace": "n",
                "incarnation": 0,
                "stage": stages[0].name,
                "model": {"layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "ffn": 8, "vocab_size": 256},
                "tokenizer_uri": "file:///t",
                "sequence_length": 8,
                "global_batch_sequences": 1,
                "sources": sources,
                "stages": [stage.model_dump() for stage in stages],
                "validation": {"every_tokens": 1},
                "checkpoints": {"uri": "file:///c"},
            }
        ),
        sizes,
    )


def due(share: Share, done: int, of: int) -> Fraction:
    """The integral of the share over the first `done` of `of` sequences."""
    if share.points:
        return of * area_under(share.points, Fraction(done, of))
    start, end = Fraction(repr(share.start)), Fraction(repr(share.end))
    power = POWER[share.shape]
    if power is None:
        return start * done
    return start * done + (end - start) * of * Fraction(done, of) ** (power + 1) / (power + 1)


def area_under(points: tuple[Point, ...], x: Fraction) -> Fraction:
    """The area under the points' polygon from 0 to x, trapezoid by trapezoid."""
    corners = [(Fraction(repr(p.at)), Fraction(repr(p.share))) for p in points]
    corners = [(Fraction(0), corners[0][1]), *corners, (Fraction(1), corners[-1][1])]
    area = Fraction(0)
    for (left, low), (right, high) in itertools.pairwise(corners):
        end = min(right, x)
        if end > left:
            at_end = low + (high - low) * (end - left) / (right - left)
            area += (end - left) * (low + at_end) / 2
    return area


@st.composite
def polygons(draw: st.DrawFn) -> list[tuple[str, Share | None]]:
    """Two sources with breakpoints of their own, below a half each, and one that takes the rest."""
    entries: list[tuple[str, Share | None]] = []
    for name in "ab":
        at = sorted(draw(st.sets(st.integers(0, 100), min_size=1, max_size=5)))
        points = tuple(Point(at=a / 100, share=draw(st.integers(0, 500)) / 1000) for a in at)
        entries.append((name, Share(points=points)))
    return [*entries, ("c", None)]


@st.composite
def mixtures(draw: st.DrawFn, *, sources: int) -> list[tuple[str, Share | None]]:
    shape = draw(st.sampled_from(list(Shape)))
    ends = []
    for _ in range(2):
        cuts = sorted(draw(st.lists(st.integers(0, 1000), min_size=sources - 1, max_size=sources - 1)))
        ends.append([(high - low) / 1000 for low, high in zip([0, *cuts], cuts, strict=False)])
    given = [Share(start=a, end=b if shape != Shape.CONSTANT else a, shape=shape) for a, b in zip(*ends, strict=True)]
    return [*zip("abcdefgh", given, strict=False), ("h", None)]


def worst_distance(entries: list[tuple[str, Share | None]], sequences: int) -> Fraction:
    drawn = StagePlan(stage("s", sequences, *entries), sequences)
    counts = {source: 0 for source, _ in entries}
    worst = Fraction(0)
    for n in range(sequences):
        source, before = drawn.draw(n)
        assert before == counts[source], "the draws of a source are numbered without gaps"
        counts[source] += 1
        planned = {name: due(share, n + 1, sequences) for name, share in entries if share is not None}
        planned |= {name: n + 1 - sum(planned.values()) for name, share in entries if share is None}
        worst = max(worst, *(abs(counts[name] - planned[name]) for name in counts))
    assert drawn.drawn(sequences) == counts
    return worst


@given(entries=mixtures(sources=2), sequences=st.integers(1, 1200))
@settings(max_examples=25)
def test_two_sources_are_within_one_sequence_of_the_plan_at_every_sequence(
    entries: list[tuple[str, Share | None]], sequences: int
) -> None:
    assert worst_distance(entries, sequences) < 1


@given(entries=st.integers(3, 6).flatmap(lambda n: mixtures(sources=n)), sequences=st.integers(1, 500))
@settings(max_examples=40)
def test_many_sources_are_within_one_sequence_of_the_plan_across_block_edges(
    entries: list[tuple[str, Share | None]], sequences: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK_SEQUENCES", 32)
        assert worst_distance(entries, sequences) < 1


@given(entries=polygons(), sequences=st.integers(1, 700))
@settings(max_examples=40)
def test_shares_between_breakpoints_are_within_one_sequence_of_the_plan(
    entries: list[tuple[str, Share | None]], sequences: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK_SEQUENCES", 64)
        assert worst_distance(entries, sequences) < 1


@given(
    shares=st.tuples(st.integers(50, 450), st.integers(50, 450)),
    left=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    sequences=st.integers(1, 600),
)
@settings(max_examples=60)
def test_a_source_at_its_limit_gives_its_share_to_the_others_in_proportion(
    shares: tuple[int, int], left: tuple[int, int], sequences: int
) -> None:
    rate = {name: Fraction(part, 1000) for name, part in zip("ab", shares, strict=True)}
    rate["c"] = 1 - sum(rate.values())
    entries = [("a", Share(start=shares[0] / 1000, end=shares[0] / 1000)), ("c", None)]
    entries.insert(1, ("b", Share(start=shares[1] / 1000, end=shares[1] / 1000)))
    limits = dict(zip("ab", left, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK_SEQUENCES", 32)
        drawn = StagePlan(stage("s", sequences, *entries), sequences, limits)
        counts, planned = dict.fromkeys("abc", 0), dict.fromkeys("abc", Fraction(0))
        open_sources = set("abc")
        for n in range(sequences):
            total = sum(rate[name] for name in open_sources)
            wanted = {name: planned[name] + rate[name] / total for name in open_sources}
            over = {name for name in open_sources if name in limits and wanted[name] > limits[name]}
            if over:
                # Which of two that end at the same sequence goes first is decided between sequences.
                open_sources -= over
                total = sum(rate[name] for name in open_sources)
                wanted = {name: planned[name] + rate[name] / total for name in open_sources}
            planned |= wanted
            source, before = drawn.draw(n)
            assert before == counts[source]
            counts[source] += 1
            assert all(counts[name] <= limits[name] for name in "ab"), "no source is read beyond its limit"
            assert all(abs(counts[name] - planned[name]) < Fraction(2) for name in "abc")
    assert drawn.drawn(sequences) == counts


def test_a_limit_holds_over_all_stages_of_a_run() -> None:
    half = Share(start=0.5, end=0.5)
    run = plan(
        stage("one", 20, ("a", half), ("b", None)),
        stage("two", 40, ("a", half), ("b", None)),
        sizes={"a": 8, "b": 1000},
        limits={"a": (2, "Renormalize")},
    )
    draws = [run.draw(n) for n in range(60)]
    assert [draw.nth for draw in draws if draw.source == "a"] == list(range(16))
    assert [draw.source for draw in draws[33:]] == ["b"] * 27
    (told,) = run.warnings(1)
    assert "source 'a' ends after" in told


def test_a_stage_that_runs_out_of_all_its_sources_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"no other source .* raise sources\[\].epochs.max") as refusal:
        plan(stage("one", 20, ("a", None)), sizes={"a": 8}, limits={"a": (2, "Renormalize")})
    assert refusal.value.reason == "SourceExhausted"


def test_a_limit_with_fail_is_refused_before_the_first_step() -> None:
    with pytest.raises(DataError, match=r"'a' would be read 2.50 times by the end of stage 'one'"):
        plan(stage("one", 20, ("a", None)), sizes={"a": 8}, limits={"a": (2, "Fail")})
    assert plan(stage("one", 16, ("a", None)), sizes={"a": 8}, limits={"a": (2, "Fail")}).warnings(0) == ()


def test_more_than_five_epochs_are_worth_a_warning() -> None:
    assert plan(stage("one", 40, ("a", None)), sizes={"a": 8}).warnings(0) == ()
    (told,) = plan(stage("one", 44, ("a", None)), sizes={"a": 8}).warnings(0)
    assert "read 5.50 times" in told


def test_epochs_so_far_count_every_stage() -> None:
    run = plan(stage("one", 16, ("a", None)), stage("two", 8, ("b", None)), sizes={"a": 8, "b": 16})
    assert run.epochs(0) == {}
    assert run.epochs(12) == {"a": 1.5}
    assert run.epochs(20) == {"a": 2.0, "b": 0.25}


def test_the_papers_ramp_draws_as_many_as_its_integral_says() -> None:
    ramp = stage("stem", 50_000, ("a", Share(start=0.1, end=0.4, shape=Shape.QUADRATIC)), ("b", None))
    assert StagePlan(ramp, 50_000).drawn(50_000) == {"a": 10_000, "b": 40_000}
    tenth = StagePlan(ramp, 50_000).drawn(5_000)
    assert abs(tenth["a"] - (500 + 0.3 * 50_000 * 0.001 / 3)) < 1


def test_a_billionth_sequence_is_found_without_the_ones_before() -> None:
    ramp = stage("s", 10**9, ("a", Share(start=0.1, end=0.4, shape=Shape.QUADRATIC)), ("b", None))
    drawn = StagePlan(ramp, 10**9)
    at = {name: drawn.drawn(10**9 - 5)[name] for name in "ab"}
    for n in range(10**9 - 5, 10**9):
        source, before = drawn.draw(n)
        assert before == at[source]
        at[source] += 1
    assert at == {"a": 2 * 10**8, "b": 8 * 10**8}


def test_a_source_goes_on_in_a_later_stage_where_it_stopped() -> None:
    half = Share(start=0.5, end=0.5)
    draws = [
        plan(stage("one", 10, ("a", half), ("b", None)), stage("two", 6, ("b", half), ("a", None))).draw(n)
        for n in range(16)
    ]
    for source in "ab":
        assert [draw.nth for draw in draws if draw.source == source] == list(range(8))
    assert [draw.stage for draw in draws] == [0] * 10 + [1] * 6


def test_editing_a_later_stage_leaves_earlier_draws_alone() -> None:
    first = stage("one", 2500, ("a", Share(start=0.3, end=0.6, shape=Shape.LINEAR)), ("b", None))

    def draws(*later: Stage) -> list[Draw]:
        whole = plan(first, *later)
        return [whole.draw(n) for n in range(2500)]

    assert draws() == draws(stage("two", 100, ("b", None))) == draws(stage("two", 700, ("c", None)), first_again(first))


def first_again(first: Stage) -> Stage:
    return first.model_copy(update={"name": "again"})


def test_a_sequence_beyond_the_last_stage_is_refused() -> None:
    with pytest.raises(IndexError, match="outside the run's 10"):
        plan(stage("one", 10, ("a", None))).draw(10)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param(
            [
                ("a", Share(start=0, end=1, shape=Shape.LINEAR)),
                ("b", Share(start=1, end=0, shape=Shape.QUADRATIC)),
                ("c", None),
            ],
            id="more than everything half-way",
        ),
        pytest.param(
            [("a", Share(start=0, end=1, shape=Shape.QUADRATIC)), ("b", Share(start=1, end=0, shape=Shape.LINEAR))],
            id="less than everything half-way, and nobody takes the rest",
        ),
        pytest.param([("a", Share(start=0.5, end=0.5)), ("a", None)], id="a source twice"),
    ],
)
def test_a_mixture_that_does_not_add_up_throughout_is_refused(entries: list[tuple[str, Share | None]]) -> None:
    with pytest.raises(ValueError, match=r"stages\[s\].mixture"):
        plan(stage("s", 100, *entries))
