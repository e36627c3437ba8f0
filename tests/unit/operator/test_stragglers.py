"""Slow nodes, as tables over what agents say of their own forward passes."""

from dataclasses import replace

import pytest
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.policies.stragglers import LEAST_NODES, TELL_AFTER_SECONDS, observed
from skywork_operator.world import Pod

from tests.unit.operator.build import NOW, condition, plan, pod, progress, world
from tests.unit.operator.test_decide import training


def members(*spent: float) -> list[Pod]:
    found = []
    for index, seconds in enumerate(spent):
        one = pod(index, generation=1, node=f"gpu-{index}")
        said = progress(9) if index == 0 else one.agent
        assert said is not None
        found.append(replace(one, agent=said.model_copy(update={"forward_seconds": seconds})))
    return found


@pytest.mark.parametrize(
    ("spent", "slow"),
    [
        pytest.param((1.0, 1.0, 1.0), [], id="all alike"),
        pytest.param((1.0, 1.2, 1.0), [], id="a little slower"),
        pytest.param((1.0, 1.0, 1.3), [("gpu-2", "1.3")], id="one slow node"),
        pytest.param((3.0, 1.0, 1.0, 2.0, 1.0), [("gpu-0", "3.0"), ("gpu-3", "2.0")], id="the slowest first"),
        pytest.param((1.0, 5.0), [], id="of two nobody can tell"),
        pytest.param((1.0, 0.0, 5.0), [], id="of two that are known neither"),
        pytest.param((0.1, 1.0, 1.0), [], id="one that is fast"),
    ],
)
def test_a_node_is_slow_that_takes_much_longer_than_the_median(
    spent: tuple[float, ...], slow: list[tuple[str, str]]
) -> None:
    assert LEAST_NODES == 3
    found = observed([], members(*spent), NOW)
    assert [(entry.node, entry.slowdown) for entry in found] == slow


def test_two_slow_pods_of_one_node_are_one_straggler() -> None:
    pods = [replace(one, node="gpu-a" if one.index < 2 else one.node) for one in members(3.0, 2.0, 1.0, 1.0, 1.0)]
    assert [(entry.node, entry.slowdown) for entry in observed([], pods, NOW)] == [("gpu-a", "3.0")]


def after(status: SkyworkRunStatus, spent: tuple[float, ...], seconds: float) -> tuple[SkyworkRunStatus, list[str]]:
    decided = plan(world(*members(*spent), status=status), NOW + seconds)
    return decided.status, [event.reason for event in decided.events if event.kind == "Warning"]


def test_a_node_that_stays_slow_is_told_of_once_by_name_and_taken_back_when_it_is_well() -> None:
    status, events = after(training(), (1.0, 1.0, 2.0), 0)
    assert (events, [entry.node for entry in status.stragglers]) == ([], ["gpu-2"])
    status, events = after(status, (1.0, 1.0, 2.0), TELL_AFTER_SECONDS)
    assert events == ["SlowNode"]
    assert condition(status, "Straggling") == ("True", "SlowNode")
    said = next(c.message for c in status.conditions if c.type == "Straggling")
    assert "node gpu-2 (pod demo-general-2-abcde) takes 2.0 times as long" in said
    status, events = after(status, (1.0, 1.0, 2.4), TELL_AFTER_SECONDS + 60)
    assert events == []
    status, events = after(status, (1.0, 1.0, 1.0), TELL_AFTER_SECONDS + 120)
    assert (events, status.stragglers) == ([], [])
    assert condition(status, "Straggling") == ("False", "NoneFound")


def test_a_node_that_is_slow_for_a_moment_is_not_told_of() -> None:
    status, _ = after(training(), (1.0, 1.0, 2.0), 0)
    status, _ = after(status, (1.0, 1.0, 1.0), 30)
    status, events = after(status, (1.0, 1.0, 2.0), TELL_AFTER_SECONDS + 5)
    assert events == []
    assert all(c.type != "Straggling" for c in status.conditions)
