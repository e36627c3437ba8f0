from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.config import LearningRate, MixtureEntry, RunConfig, Schedule, Shape, Share, Stage
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


def plan(*stages: Stage) -> Plan:
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
                "sources": [{"name": name, "uri": "file:///s"} for name in "abcdefgh"],
                "stages": [stage.model_dump() for stage in stages],
                "validation": {"every_tokens": 1},
                "checkpoints": {"uri": "file:///c"},
            }
        )
    )


def due(share: Share, done: int, of: int) -> Fraction:
    """The integral of the share over the first `done` of `of` sequences."""
    start, end = Fraction(repr(share.start)), Fraction(repr(share.end))
    power = POWER[share.shape]
    if power is None:
        return start * done
    return start * done + (end - start) * of * Fraction(done, of) ** (power + 1) / (power + 1)


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
@settings(max_examples=25, deadline=None)
def test_two_sources_are_within_one_sequence_of_the_plan_at_every_sequence(
    entries: list[tuple[str, Share | None]], sequences: int
) -> None:
    assert worst_distance(entries, sequences) < 1


@given(entries=st.integers(3, 6).flatmap(lambda n: mixtures(sources=n)), sequences=st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_many_sources_are_within_one_sequence_of_the_plan_across_block_edges(
    entries: list[tuple[str, Share | None]], sequences: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK_SEQUENCES", 32)
        assert worst_distance(entries, sequences) < 1


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
    with pytest.raises(DataError, match="mixture") as refusal:
        StagePlan(stage("s", 100, *entries), 100)
    assert refusal.value.reason == "MixtureInvalid"
