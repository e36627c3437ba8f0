"""What is decided on late news alone, and what is decided again on fresh reads."""

from dataclasses import replace
from typing import Any

import pytest
from skywork_operator.policies.certainty import wanted
from skywork_operator.world import Pod

from tests.unit.operator.build import NOW, failed, plan, pod, progress, run, status_after, world

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
