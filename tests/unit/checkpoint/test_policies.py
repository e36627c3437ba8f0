"""When a save is due, what is kept, what a link of the history covers: tables and properties, no clock, no store."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.checkpoint.history import decode
from skywork_trainer.checkpoint.interval import (
    DEFAULT_SECONDS,
    LONGEST_AUTO_SECONDS,
    SHORTEST_AUTO_SECONDS,
    Interval,
    auto_seconds,
)
from skywork_trainer.checkpoint.ledger import Ledger
from skywork_trainer.checkpoint.retention import Kept, kept
from skywork_trainer.config import Checkpoints

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def interval(clock: Clock, *, trained_seconds: float = 0.0, failures: int = 0, **every: object) -> Interval:
    settings = Checkpoints(**({"uri": "file:///x"} | every))
    return Interval(settings, tokens_per_step=96, clock=clock, trained_seconds=trained_seconds, failures=failures)


def test_without_a_word_a_save_is_due_after_ten_minutes() -> None:
    clock = Clock()
    timed = interval(clock)
    clock.now += DEFAULT_SECONDS - 1
    assert not timed.due(5)
    clock.now += 1
    assert timed.due(6)
    timed.begun(6, durable=True)
    assert not timed.due(7)


@pytest.mark.parametrize(
    ("every", "due"),
    [
        ({"every_steps": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"every_steps": 4}, [4, 8]),
        ({"every_tokens": 96 * 3}, [3, 6, 9]),
        ({"every_tokens": 240}, [3, 5, 8, 10]),
        ({"every_tokens": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_steps_and_tokens_are_counted_over_the_run(every: dict[str, int], due: list[int]) -> None:
    counted, found = interval(Clock(), **every), []
    for step in range(1, 11):
        if counted.due(step):
            counted.begun(step, durable=True)
            found.append(step)
    assert found == due


def test_a_save_that_was_passed_over_is_due_again_only_after_the_next_interval() -> None:
    counted = interval(Clock(), every_steps=4)
    assert counted.due(4)
    counted.begun(4, durable=True)
    assert [step for step in range(5, 9) if counted.due(step)] == [8]


def test_a_durable_save_stands_in_for_a_local_one() -> None:
    clock = Clock()
    both = interval(clock, every_seconds=100, local_keep=1, local_every_seconds=30)
    clock.now += 30
    assert (both.local_due(), both.due(1)) == (True, False)
    both.begun(1, durable=False)
    clock.now += 29
    assert not both.local_due()
    both.begun(2, durable=True)
    clock.now += 29
    assert not both.local_due()


@pytest.mark.parametrize(
    ("stall", "save", "trained", "failures", "expected"),
    [
        pytest.param(1.0, 5.0, 0.0, 0, math.sqrt(2 * 8 * HOUR), id="nothing seen: one failure in eight hours"),
        pytest.param(1.0, 5.0, 92 * HOUR, 9, math.sqrt(2 * 10 * HOUR), id="a failure every ten hours"),
        pytest.param(0.01, 5.0, 0.0, 99, SHORTEST_AUTO_SECONDS, id="saves for nothing: not without end"),
        pytest.param(0.01, 200.0, 0.0, 99, 200.0, id="never more often than a save takes"),
        pytest.param(60.0, 5.0, 9000 * HOUR, 0, LONGEST_AUTO_SECONDS, id="nothing ever fails: once an hour even so"),
        pytest.param(0.0, 1.0, 0.0, 0, SHORTEST_AUTO_SECONDS, id="no stall at all"),
    ],
)
def test_auto_weighs_the_stall_against_the_failures(
    stall: float, save: float, trained: float, failures: int, expected: float
) -> None:
    found = auto_seconds(stall_seconds=stall, save_seconds=save, trained_seconds=trained, failures=failures)
    assert found == pytest.approx(expected)


@given(stall=st.floats(0, 1e4), save=st.floats(0, 1e5), trained=st.floats(0, 1e9), failures=st.integers(0, 10**6))
def test_auto_is_bounded_and_more_failures_never_make_it_longer(
    stall: float, save: float, trained: float, failures: int
) -> None:
    one = auto_seconds(stall_seconds=stall, save_seconds=save, trained_seconds=trained, failures=failures)
    more = auto_seconds(stall_seconds=stall, save_seconds=save, trained_seconds=trained, failures=failures + 1)
    assert SHORTEST_AUTO_SECONDS <= more <= one <= max(LONGEST_AUTO_SECONDS, save)


def test_auto_goes_by_the_default_until_a_save_was_measured() -> None:
    clock = Clock()
    auto = interval(clock, auto=True)
    assert auto.seconds == DEFAULT_SECONDS
    auto.measured(stall_seconds=1.0, save_seconds=5.0)
    clock.now += HOUR
    assert auto.trained_seconds == HOUR
    assert auto.seconds == pytest.approx(math.sqrt(2 * 9 * HOUR))


def entries(losses: Sequence[float | None]) -> list[Kept]:
    return [
        Kept(id=f"{step:03d}", tokens=step * 10, loss=math.inf if loss is None else loss)
        for step, loss in enumerate(losses, start=1)
    ]


FLAT = entries([None] * 8)


@pytest.mark.parametrize(
    ("committed", "keep", "corrupt", "held", "stay"),
    [
        pytest.param(FLAT, {"keep_last": 2}, (), (), "7 8", id="the newest"),
        pytest.param(FLAT[:1], {"keep_last": 3}, (), (), "1", id="fewer than are kept"),
        pytest.param(FLAT, {"keep_last": 1, "keep_every_tokens": 30}, (), (), "3 6 8", id="the first behind each 30"),
        pytest.param(FLAT, {"keep_last": 1, "keep_every_tokens": 25}, (), (), "3 5 8", id="the first behind each 25"),
        pytest.param(
            entries([3, 1, 2, 4, None]), {"keep_last": 1, "keep_best": 2}, (), (), "2 3 5", id="best by validation"
        ),
        pytest.param(entries([3, 1, 1, 4]), {"keep_last": 1, "keep_best": 1}, (), (), "3 4", id="of equals the newest"),
        pytest.param(FLAT, {"keep_last": 1}, ("008",), (), "7 8", id="a corrupt one is no newest, and stays"),
        pytest.param(FLAT, {"keep_last": 1}, ("002", "003", "004"), (), "3 4 8", id="a few corrupt ones stay"),
        pytest.param(FLAT, {"keep_last": 1}, (), ("002",), "2 8", id="one that is read"),
        pytest.param(
            entries([1, 2]), {"keep_last": 1, "keep_best": 1}, ("001",), (), "1 2", id="a corrupt one is not best"
        ),
    ],
)
def test_what_stays(
    committed: list[Kept], keep: dict[str, int], corrupt: Sequence[str], held: Sequence[str], stay: str
) -> None:
    rules = Checkpoints(uri="file:///x", **keep)
    found = kept(committed, rules, corrupt=corrupt, held=held)
    assert " ".join(str(int(identity)) for identity in sorted(found)) == stay


@given(
    losses=st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=30),
    last=st.integers(1, 5),
    best=st.integers(0, 5),
    every=st.none() | st.integers(1, 100),
    corrupt=st.sets(st.integers(1, 30).map("{:03d}".format)),
)
def test_the_newest_that_is_not_known_to_be_corrupt_always_stays(
    losses: list[float | None], last: int, best: int, every: int | None, corrupt: set[str]
) -> None:
    rules = Checkpoints(uri="file:///x", keep_last=last, keep_best=best, keep_every_tokens=every)
    committed = entries(losses)
    stay = kept(committed, rules, corrupt=corrupt)
    sound = [one.id for one in committed if one.id not in corrupt]
    assert set(sound[-last:]) <= stay <= {one.id for one in committed}


@given(st.lists(st.sampled_from(["train", "begin", "commit", "fail"]), max_size=60))
def test_links_cover_every_step_exactly_once_whichever_saves_fail(events: list[str]) -> None:
    ledger, step, flight = Ledger(), 0, None
    links: list[list[int]] = []
    for event in events:
        if event == "train":
            ledger.trained(step, range(step * 4, step * 4 + 4), float(step))
            step += 1
        elif event == "begin" and flight is None:
            flight = (step, ledger.parent_step, decode(ledger.consumed), ledger.losses)
        elif event == "commit" and flight is not None:
            saved, first, consumed, losses = flight
            assert losses == [float(s) for s in range(first, saved)]
            links.append(consumed)
            ledger.committed(f"at-{saved}", saved)
            flight = None
        elif event == "fail":
            flight = None
    assert [number for link in links for number in link] == list(range(ledger.parent_step * 4))
    assert ledger.sequences == list(range(ledger.parent_step * 4, step * 4))
