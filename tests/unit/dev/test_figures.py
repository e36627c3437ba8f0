"""What a benchmark's line says of a figure, its peer's and its goal."""

import json

import pytest

from dev.bench.figures import Figure, Goal


def line(**fields: object) -> dict[str, object]:
    given = {"figure": "x", "unit": "s", "values": [3.0, 1.0, 2.0]} | fields
    return dict(json.loads(Figure(**given).to_json()))  # type: ignore[arg-type]


def test_the_value_is_the_median_and_least_and_most_stand_beside_it() -> None:
    told = line()
    assert (told["value"], told["min"], told["max"], told["repeats"]) == (2.0, 1.0, 3.0, 3)
    assert (told["peer_value"], told["ratio"], told["goal"], told["holds"]) == (None, None, None, None)


@pytest.mark.parametrize(
    ("less_is_better", "theirs", "ratio"), [(True, 20.0, 10.0), (False, 20.0, 0.1), (False, 0.5, 4.0), (True, 1.0, 0.5)]
)
def test_the_ratio_says_how_many_times_better_than_the_peer(less_is_better: bool, theirs: float, ratio: float) -> None:
    assert line(less_is_better=less_is_better, peer="p", peer_values=[theirs])["ratio"] == ratio


@pytest.mark.parametrize(
    ("goal", "theirs", "holds"),
    [
        (Goal(of="value", at_most=2.0), [], True),
        (Goal(of="value", at_most=1.9), [], False),
        (Goal(of="ratio", at_least=10), [20.0], True),
        (Goal(of="ratio", at_least=11), [20.0], False),
        (Goal(of="ratio", at_least=11), [], None),
    ],
)
def test_a_goal_holds_fails_or_is_open_where_the_peer_is_missing(
    goal: Goal, theirs: list[float], holds: bool | None
) -> None:
    told = line(goal=goal, peer_values=theirs)
    assert told["holds"] is holds
    assert told["goal"] == str(goal)
