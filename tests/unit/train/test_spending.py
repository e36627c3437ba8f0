"""Where a process's time goes adds up to all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.config import Section
from skywork_trainer.spending import Spending

WHAT = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from(list(Section))),
    st.tuples(st.just("waited"), st.floats(0, 20)),
    st.tuples(st.just("look"), st.none()),
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(life=st.lists(st.tuples(st.floats(0, 100), WHAT), max_size=40))
def test_the_parts_are_the_whole_life_and_none_is_negative(life: list[tuple[float, tuple[str, object]]]) -> None:
    clock = Clock()
    spending = Spending(clock)
    for passed, (what, value) in life:
        clock.now += passed
        if what == "enter":
            assert isinstance(value, Section)
            spending.enter(value)
        elif what == "waited":
            assert isinstance(value, float)
            spending.waited(value)
        else:
            spending.seconds()
    parts = spending.seconds()
    assert sum(parts.values()) == pytest.approx(clock.now)
    assert all(seconds >= -1e-9 for seconds in parts.values())


def test_time_goes_to_what_was_entered_and_waits_are_taken_out_of_it() -> None:
    clock = Clock()
    spending = Spending(clock)
    for section, seconds in [(Section.RESTORE, 2), (Section.FIRST_STEP, 3), (Section.STEP, 5), (Section.SAVE, 10)]:
        clock.now += seconds
        spending.enter(section)
    clock.now += 1
    spending.enter(Section.VALIDATE)
    clock.now += 4
    spending.enter(Section.STEP)
    clock.now += 6
    spending.waited(1.5)
    assert spending.seconds() == {
        "initialize": 2, "restore": 3, "train": 5 + 10 + 4.5, "checkpoint": 1, "validate": 4, "dataWait": 1.5,
    }  # fmt: skip
