"""What a benchmark's line says of a figure, its peer's and its goal."""

import json

import pytest

from dev.bench.figures import Figure, Goal, Peer


def line(**fields: object) -> dict[str, object]:
    given = {"figure": "x", "unit": "s", "values": [3.0, 1.0, 2.0]} | fields
    return dict(json.loads(Figure(**given).to_json()))  # type: ignore[arg-type]


def test_the_value_is_the_median_and_least_and_most_stand_beside_it() -> None:
    told = line()
    assert (told["value"], told["min"], told["median"], told["max"], told["repeats"]) == (2.0, 1.0, 2.0, 3.0, 3)
    assert (told["peer_value"], told["ratio"], told["goal"], told["holds"]) == (None, None, None, None)


def test_one_measurement_has_no_spread() -> None:
    assert not {"min", "median", "max"} & line(values=[1.0]).keys()


@pytest.mark.parametrize(
    ("less_is_better", "theirs", "ratio"), [(True, 20.0, 10.0), (False, 20.0, 0.1), (False, 0.5, 4.0), (True, 1.0, 0.5)]
)
def test_the_ratio_says_how_many_times_better_than_the_peer(less_is_better: bool, theirs: float, ratio: float) -> None:
    assert line(less_is_better=less_is_better, peer=Peer(name="p", values=[theirs]))["ratio"] == ratio


def test_the_ratio_is_the_median_over_the_turns_so_that_a_slow_minute_counts_once() -> None:
    told = line(values=[1.0, 10.0, 1.0], peer=Peer(name="p", values=[4.0, 30.0, 5.0]))
    assert (told["ratio"], told["ratio_min"], told["ratio_max"]) == (4.0, 3.0, 5.0)
    assert (told["value"], told["peer_value"], told["peer_min"], told["peer_max"]) == (1.0, 5.0, 4.0, 30.0)


def test_a_peer_with_fewer_turns_is_compared_by_the_medians() -> None:
    assert line(values=[1.0, 2.0, 3.0], peer=Peer(name="p", values=[8.0]))["ratio"] == 4.0


def test_nothing_is_infinitely_better() -> None:
    told = line(values=[0.0], peer=Peer(name="p", values=[8.0]), goal=Goal(of="ratio", at_least=2))
    assert (told["ratio"], told["holds"]) == (None, None)


def test_a_missing_peer_is_named_with_the_reason() -> None:
    told = line(peer=Peer(name="p", missing="no network"))
    assert (told["peer"], told["peer_value"], told["ratio"]) == (None, None, None)
    assert told["peer_missing"] == "p: no network"


@pytest.mark.parametrize(
    ("goal", "theirs", "holds"),
    [
        (Goal(of="value", at_most=2.0), [], True),
        (Goal(of="value", at_most=1.9), [], False),
        (Goal(of="value", at_least=2.0), [], True),
        (Goal(of="ratio", at_least=10), [20.0], True),
        (Goal(of="ratio", at_least=11), [20.0], False),
        (Goal(of="ratio", at_least=11), [], None),
    ],
)
def test_a_goal_holds_fails_or_is_open_where_the_peer_is_missing(
    goal: Goal, theirs: list[float], holds: bool | None
) -> None:
    told = line(goal=goal, peer=Peer(name="p", values=theirs, missing=None if theirs else "not there"))
    assert told["holds"] is holds
    assert told["goal"] == str(goal)
