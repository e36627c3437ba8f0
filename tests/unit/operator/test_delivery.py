"""Words that were not heard are said again, at growing intervals, and only where that is known."""

from dataclasses import replace
from typing import Any

import pytest
from skywork_operator.policies.delivery import unheard
from skywork_operator.world import Pod
from skywork_trainer.config import AgentPhase, AgentStatus, Role

from tests.unit.operator.build import NOW, place, plan, pod, world


def told(*, heard: int | None, ago: float, repeated: int = 0, role: Role = Role.TRAIN, **changes: Any) -> Pod:
    """A pod that was told of generation 2 so many seconds ago, and whose agent has heard of `heard`."""
    word = place(2, 1).model_copy(update={"role": role, "sent": NOW - ago, "repeated": repeated})
    agent = AgentStatus(phase=AgentPhase.STANDBY, generation=1, heard=heard)
    return pod(1, membership=word, agent=agent, **changes)


@pytest.mark.parametrize(
    ("seen", "again"),
    [
        pytest.param(told(heard=1, ago=3.0), True, id="three seconds without it"),
        pytest.param(told(heard=1, ago=2.9), False, id="it may be on its way"),
        pytest.param(told(heard=2, ago=60), False, id="it was heard"),
        pytest.param(told(heard=3, ago=60), False, id="a newer one was heard"),
        pytest.param(told(heard=0, ago=3.0), True, id="nothing was ever heard"),
        pytest.param(told(heard=1, ago=5.9, repeated=1), False, id="said twice, less than six seconds ago"),
        pytest.param(told(heard=1, ago=6.0, repeated=1), True, id="said twice, six seconds ago"),
        pytest.param(told(heard=1, ago=191.0, repeated=40), False, id="said often, about three minutes ago"),
        pytest.param(told(heard=1, ago=192.0, repeated=40), True, id="said often, more than three minutes ago"),
        pytest.param(told(heard=None, ago=60), False, id="an agent that does not tell"),
        pytest.param(replace(told(heard=1, ago=60), agent=None), False, id="an agent that does not answer"),
        pytest.param(told(heard=1, ago=60, terminating=True), False, id="a pod that ends"),
        pytest.param(told(heard=1, ago=NOW), False, id="a word that needs no delivery"),
        pytest.param(pod(1), False, id="a pod that was told nothing"),
        pytest.param(told(heard=1, ago=3.0, role=Role.LEAVE), True, id="a word to leave"),
    ],
)
def test_a_word_is_said_again_when_an_agent_that_answers_has_not_heard_it_in_time(seen: Pod, again: bool) -> None:
    assert [word.repeated for _, word in unheard([seen], NOW)] == ([seen.membership.repeated + 1] if again else [])  # type: ignore[union-attr]


def test_what_is_said_again_is_the_same_word_to_the_same_pod() -> None:
    seen = told(heard=1, ago=5)
    ((pod_told, word),) = unheard([seen], NOW)
    assert pod_told is seen
    assert word == seen.membership.model_copy(update={"repeated": 1})  # type: ignore[union-attr]


def test_a_member_that_has_not_heard_of_its_generation_is_told_again_beside_all_else() -> None:
    deaf = told(heard=0, ago=4)
    members = [pod(0, generation=2), deaf, pod(2, generation=2)]
    seen = world(*members)
    assert [(p.index, word.repeated) for p, word in plan(seen).memberships] == [(1, 1)]
    assert [event.reason for event in plan(seen).events if event.reason == "ToldAgain"] == ["ToldAgain"]


def test_a_pod_that_gets_a_new_word_is_not_told_the_old_one() -> None:
    fresh = [pod(0), told(heard=0, ago=9), pod(2)]
    words = plan(world(*fresh)).memberships
    assert len({p.uid for p, _ in words}) == len(words)
    assert all(not word.repeated for _, word in words)
