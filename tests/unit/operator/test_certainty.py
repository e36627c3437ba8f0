"""What is decided on late news alone, and what is decided again on fresh reads."""

from dataclasses import replace
from typing import Any

import pytest
from skywork_operator.api.status import NodeStrikes, Restarts
from skywork_operator.policies.certainty import wanted
from skywork_operator.world import Plan, Pod

from tests.unit.operator.build import NOW, ago, failed, place, plan, pod, progress, run, status_after, world

READY = [pod(0), pod(1), pod(2)]
TRAINS = [pod(0, generation=1, agent=progress(10)), pod(1, generation=1), pod(2, generation=1)]


def certain(*pods: Pod, before: Any = None, **changes: Any) -> bool:
    seen = world(*pods, status=before, **changes)
    return wanted(seen.run.status, plan(seen))


def starting() -> Any:
    """The status while the pods come up."""
    return status_after(world(replace(pod(0), phase="Pending", agent=None)))


def training() -> Any:
    """The status of a run that trains."""
    return status_after(world(*TRAINS, status=status_after(world(*READY, status=starting()))))


@pytest.mark.parametrize(
    "does",
    [
        pytest.param({"objects": ({"kind": "Job"},)}, id="makes a Job"),
        pytest.param({"suspend": ("demo-general",)}, id="suspends one"),
        pytest.param({"delete_jobs": ("demo-general",)}, id="deletes one"),
        pytest.param({"resize": (("demo-general", 4),)}, id="resizes one"),
        pytest.param({"memberships": ((pod(0), place(1, 0)),)}, id="tells a pod its place"),
        pytest.param({"untrack": (pod(0),)}, id="hides a pod's end from its Job"),
        pytest.param({"forget": (pod(0),)}, id="removes a pod"),
        pytest.param({"delete_pods": (pod(0),)}, id="deletes a pod"),
        pytest.param({"delete_run": True}, id="deletes the run"),
    ],
)
def test_whatever_is_done_is_decided_on_fresh_reads(does: dict[str, Any]) -> None:
    before = starting()
    assert not wanted(before, Plan(status=before))
    assert wanted(before, Plan(status=before, **does))


@pytest.mark.parametrize(
    "says",
    [
        pytest.param({"generation": 7}, id="a generation"),
        pytest.param({"generation_end": "Hang"}, id="why one ended"),
        pytest.param({"restarts": Restarts(total=1)}, id="a restart"),
        pytest.param(
            {"node_strikes": [NodeStrikes(node="a", strikes=1, reason="Hang", time=ago(1))]},
            id="a strike against a node",
        ),
        pytest.param({"stage": "stem"}, id="another stage"),
        pytest.param({"conditions": []}, id="a condition"),
    ],
)
def test_what_later_passes_go_by_is_said_on_fresh_reads(says: dict[str, Any]) -> None:
    before = starting()
    assert wanted(before, Plan(status=before.model_copy(update=says)))


def test_a_run_whose_pods_come_up_is_only_looked_at() -> None:
    before = starting()
    assert not certain(pod(0), pod(1), replace(pod(2), phase="Pending", agent=None), before=before)
    assert not certain(replace(pod(0), phase="Pending", agent=None, gated=True), before=before), "opened at once"


def test_steps_that_are_done_are_told_of_without_reads() -> None:
    seen = [pod(0, generation=1, agent=progress(20)), *TRAINS[1:]]
    after = plan(world(*seen, status=training()))
    assert after.status.step == 20
    assert not wanted(training(), after)


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([*TRAINS[:2], failed(2, 1)], id="a worker failed"),
        pytest.param(TRAINS[:2], id="a pod is gone"),
        pytest.param([*TRAINS[:2], replace(TRAINS[2], terminating=True, ends_by=NOW + 30)], id="a pod ends"),
        pytest.param([replace(p, membership=None) for p in TRAINS], id="nobody was told anything"),
    ],
)
def test_the_end_of_a_generation_is_decided_on_fresh_reads(pods: list[Pod]) -> None:
    assert certain(*pods, before=training())


def test_a_world_is_formed_on_fresh_reads() -> None:
    assert certain(*READY, before=starting())


def test_a_stage_is_started_and_a_run_is_suspended_on_fresh_reads() -> None:
    bare = replace(world(), jobs={}, run=run())
    assert wanted(bare.run.status, plan(bare))
    assert certain(*TRAINS, before=training(), suspend=True)


def test_the_next_stage_begins_on_fresh_reads() -> None:
    seen = world(status=training())
    seen = replace(seen, jobs={"general": replace(seen.jobs["general"], complete=True)})
    assert wanted(seen.run.status, plan(seen))


def test_a_job_of_another_size_is_wanted_on_fresh_reads() -> None:
    seen = world(*TRAINS, status=training())
    seen = replace(seen, jobs={"general": replace(seen.jobs["general"], pods=5)})
    assert wanted(seen.run.status, plan(seen))
