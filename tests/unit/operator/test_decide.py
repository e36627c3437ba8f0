"""What the operator decides, as tables over plain data with an injected clock."""

from dataclasses import replace

import pytest
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.world import Job, World
from skywork_trainer.config import AgentPhase, AgentStatus, Failure, Role

from tests.unit.operator.build import (
    NOW,
    condition,
    failed,
    plan,
    pod,
    progress,
    run,
    status_after,
    world,
)


def training() -> SkyworkRunStatus:
    """Status of a run whose first generation is training."""
    started = status_after(world(pod(0), pod(1), pod(2)))
    assert started.generation == 1
    return started


def test_a_new_run_gets_the_job_and_the_config_of_its_first_stage() -> None:
    decided = plan(World(run=run()))
    assert [(m["kind"], m["metadata"]["name"]) for m in decided.objects] == [
        ("ConfigMap", "demo-general"),
        ("Job", "demo-general"),
    ]
    assert condition(decided.status, "Accepted") == ("True", "Valid")
    assert decided.status.state == "Starting"
    assert [e.reason for e in decided.events] == ["StageStarted"]


def test_a_stage_that_was_started_has_nothing_new_to_say_while_its_pods_are_not_there() -> None:
    started = plan(World(run=run())).status
    assert condition(started, "Running") == ("False", "WaitingForPods")
    assert (started.nodes.ready, started.nodes.desired) == (0, 3)
    assert status_after(world(status=started), NOW + 5) == started


def test_a_world_forms_when_all_nodes_are_ready_with_ranks_by_index_and_rank_0_as_master() -> None:
    decided = plan(world(pod(2), pod(0), pod(1)))
    words = {p.index: word for p, word in decided.memberships}
    assert [words[i].rank for i in range(3)] == [0, 1, 2]
    assert {word.master for word in words.values()} == {"10.0.0.1:29501"}
    assert {(w.generation, w.nodes, w.role) for w in words.values()} == {(1, 3, Role.TRAIN)}
    assert decided.status.generation == 1


@pytest.mark.parametrize(
    ("ready", "waited", "nodes"),
    [
        pytest.param(3, 0, 3, id="all are ready: start at once"),
        pytest.param(2, 119, None, id="one is missing: wait for it"),
        pytest.param(2, 120, 2, id="shrinkAfter has gone by: start with two"),
        pytest.param(1, 9999, None, id="fewer than min never start"),
    ],
)
def test_a_world_shrinks_only_after_shrink_after_and_never_below_min(
    ready: int, waited: float, nodes: int | None
) -> None:
    waiting = plan(world(pod(0))).status
    decided = plan(world(*[pod(i) for i in range(ready)], status=waiting), NOW + waited)
    assert len(decided.memberships) == (nodes or 0)


def test_a_healthy_generation_is_left_alone() -> None:
    seen = world(*[pod(i, generation=1) for i in range(3)], status=training())
    decided = plan(seen)
    assert decided.memberships == () and decided.objects == () and decided.events == ()


def test_a_pass_over_an_unchanged_world_changes_nothing() -> None:
    seen = world(pod(0, generation=1, agent=progress(7)), pod(1, generation=1), pod(2, generation=1), status=training())
    once = plan(seen)
    again = plan(replace(seen, run=replace(seen.run, status=once.status)), NOW + 500)
    assert again.status == once.status
    assert again.memberships == () and again.objects == () and again.events == ()


def test_a_killed_worker_ends_the_generation_and_the_same_pods_form_the_next_one() -> None:
    seen = world(pod(0, generation=1), failed(1, 1), pod(2, generation=1), status=training())
    decided = plan(seen)
    assert [(p.name, w.generation, w.drain) for p, w in decided.memberships] == [
        (f"demo-general-{i}-abcde", 2, False) for i in range(3)
    ]
    assert decided.status.restarts.total == 1
    assert [(r.reason, r.count) for r in decided.status.restarts.by_reason] == [("Killed", 1)]
    assert [e.reason for e in decided.events] == ["Killed", "GenerationStarted"]


def test_the_cause_of_a_generation_s_end_is_its_earliest_failure() -> None:
    peers = [failed(1, 1, reason="AppError", time=NOW - 1), failed(2, 1, reason="Killed", time=NOW - 2)]
    decided = plan(world(pod(0, generation=1), *peers, status=training()))
    assert [r.reason for r in decided.status.restarts.by_reason] == ["Killed"]


def test_a_peer_s_echo_is_not_the_cause_even_when_it_comes_first() -> None:
    peers = [failed(0, 1, reason="PeerLost", time=NOW - 2), failed(1, 1, reason="Killed", time=NOW - 1)]
    decided = plan(world(*peers, pod(2, generation=1), status=training()))
    assert [r.reason for r in decided.status.restarts.by_reason] == ["Killed"]


def test_a_deleted_pod_is_waited_for_and_does_not_use_up_the_budget() -> None:
    gone = pod(1, generation=1, terminating=True)
    decided = plan(world(pod(0, generation=1), gone, pod(2, generation=1), status=training()))
    assert decided.memberships == ()
    assert decided.status.restarts.without_progress == 0
    assert [(r.reason, r.count) for r in decided.status.restarts.by_reason] == [("PodLost", 1)]
    replaced = pod(1, name="demo-general-1-fghij", uid="pod-new")
    seen = world(pod(0, generation=1), replaced, pod(2, generation=1), status=decided.status)
    again = plan(seen)
    assert {w.generation for _, w in again.memberships} == {2}
    assert again.status.restarts.total == 1, "the end of one generation is counted once"


def test_a_pass_that_died_after_its_status_write_is_not_counted_twice() -> None:
    seen = world(pod(0, generation=1), failed(1, 1), pod(2, generation=1), status=training())
    written = plan(seen).status
    repeated = plan(replace(seen, run=replace(seen.run, status=written)))
    assert repeated.status.restarts == written.restarts
    assert {w.generation for _, w in repeated.memberships} == {3}, "a number is never handed out twice"


def test_a_membership_that_reached_only_some_pods_is_superseded() -> None:
    seen = world(pod(0, generation=2), pod(1, generation=1), pod(2, generation=1), status=training())
    seen = replace(seen, run=replace(seen.run, status=seen.run.status.model_copy(update={"generation": 2})))
    decided = plan(seen)
    assert {w.generation for _, w in decided.memberships} == {3}
    assert len(decided.memberships) == 3


def test_failures_in_a_row_without_a_new_checkpoint_end_the_run_and_free_its_nodes() -> None:
    policy = {"restartsWithoutProgress": 5}
    status, generation, ended = training(), 1, 0
    for now in range(int(NOW), int(NOW) + 10_000, 100):
        broken = [pod(0, generation=generation), failed(1, generation), pod(2, generation=generation)]
        decided = plan(world(*broken, status=status, failurePolicy=policy), now)
        status, ended = decided.status, ended + 1
        if decided.suspend:
            break
        if not decided.memberships:
            # The pause between restarts: the next pass finds the same pods, a while later.
            decided = plan(world(*broken, status=status, failurePolicy=policy), now + 90)
            status = decided.status
        (generation,) = {word.generation for _, word in decided.memberships}
    assert ended == 6
    assert condition(status, "Failed") == ("True", "Killed")
    assert decided.suspend == ("demo-general",)
    assert status.state == "Failed"


def test_a_new_checkpoint_refills_the_restart_budget() -> None:
    first = plan(world(pod(0, generation=1), failed(1, 1), pod(2, generation=1), status=training()))
    assert first.status.restarts.without_progress == 1
    saved = progress(40, 2, checkpoint="c", checkpoint_step=40, checkpoint_uri="s3://x", checkpoint_time=NOW)
    pods = (pod(0, generation=2, agent=saved), failed(1, 2), pod(2, generation=2))
    second = plan(world(*pods, status=first.status))
    assert second.status.restarts.without_progress == 1
    assert second.status.restarts.total == 2


def test_a_finished_stage_hands_over_to_the_next_one() -> None:
    ended = pod(0, generation=1, phase=AgentPhase.DONE)
    ended = replace(ended, phase="Succeeded", agent=None, last_words=progress(100))
    seen = world(ended, status=training())
    seen = replace(seen, jobs={"general": replace(seen.jobs["general"], complete=True)})
    decided = plan(seen)
    assert [m["metadata"]["name"] for m in decided.objects] == ["demo-stem", "demo-stem"]
    (general, stem) = decided.status.stages
    assert (general.name, general.steps, general.completion_time is not None) == ("general", 100, True)
    assert (stem.name, stem.completion_time) == ("stem", None)
    fresh = world(*[pod(i) for i in range(3)], status=decided.status, stage="stem")
    assert {w.generation for _, w in plan(fresh).memberships} == {2}, "the next stage's world is a new generation"
    assert decided.status.step == 100


def test_a_run_whose_stages_are_all_trained_succeeds_once() -> None:
    jobs = {s: Job(stage=s, uid=s, complete=True) for s in ("general", "stem")}
    decided = plan(World(run=run(training()), jobs=jobs))
    assert condition(decided.status, "Succeeded") == ("True", "AllStagesTrained")
    assert decided.requeue_after_seconds is None
    again = plan(World(run=run(decided.status), jobs=jobs), NOW + 100)
    assert again.events == () and again.status == decided.status


def test_a_finished_pod_is_no_lost_member() -> None:
    done = replace(pod(1, generation=1), phase="Succeeded", agent=None)
    decided = plan(world(pod(0, generation=1), done, pod(2, generation=1), status=training()))
    assert decided.memberships == () and decided.status.restarts.total == 0


def test_a_node_that_came_too_late_for_a_finished_stage_is_sent_home_and_no_restart_is_counted() -> None:
    done = [replace(pod(i, generation=1), phase="Succeeded", agent=None) for i in (0, 1)]
    two = [replace(d, membership=d.membership.model_copy(update={"nodes": 2})) for d in done]  # type: ignore[union-attr]
    decided = plan(world(*two, pod(2), status=training()))
    assert [(p.index, w.generation, w.role) for p, w in decided.memberships] == [(2, 2, Role.DONE)]
    assert decided.status.restarts.total == 0
    waiting = plan(world(*two, replace(pod(2), phase="Pending", agent=None), status=training()))
    assert waiting.memberships == () and waiting.status.restarts.total == 0


def test_a_configuration_error_fails_the_run_with_the_trainer_s_own_words() -> None:
    failure = Failure(time=NOW, rank=0, reason="BucketMissing", message="bucket data does not exist", retryable=False)
    words = AgentStatus(phase=AgentPhase.FAILED, generation=1, failure=failure)
    ended = replace(pod(0, generation=1), phase="Failed", agent=None, last_words=words)
    seen = world(ended, status=training())
    seen = replace(seen, jobs={"general": Job(stage="general", uid="j", failed="pod failed with exit code 64")})
    decided = plan(seen)
    assert condition(decided.status, "Failed") == ("True", "BucketMissing")
    assert "bucket data does not exist" in next(c.message for c in decided.status.conditions if c.type == "Failed")
    again = plan(replace(seen, run=replace(seen.run, status=decided.status)), NOW + 60)
    assert again.status == decided.status and again.events == ()


def test_shares_that_do_not_add_up_are_refused_with_the_stage_named() -> None:
    stages = [dict(s) for s in run().spec.model_dump(by_alias=True, exclude_none=True)["stages"]]
    stages[0]["mixture"] = [{"source": "main", "share": {"from": "0.5"}}]
    decided = plan(World(run=run(stages=stages)))
    accepted = next(c for c in decided.status.conditions if c.type == "Accepted")
    assert accepted.status == "False" and "stages[general].mixture" in accepted.message
    assert decided.objects == ()


def test_a_world_grows_by_draining_when_a_node_comes_back() -> None:
    small = status_after(world(pod(0), pod(1), status=plan(world(pod(0), pod(1))).status), NOW + 120)
    two = {i: pod(i, generation=1).membership for i in range(2)}
    members = [
        replace(pod(i, generation=1), membership=two[i].model_copy(update={"nodes": 2}))  # type: ignore[union-attr]
        for i in range(2)
    ]
    members[0] = replace(members[0], agent=progress(5))
    decided = plan(world(*members, pod(2), status=small), NOW + 200)
    assert [(w.rank, w.nodes, w.drain) for _, w in decided.memberships] == [(0, 3, True), (1, 3, True), (2, 3, True)]
    assert decided.status.restarts.total == 0


def test_a_world_that_is_still_restoring_does_not_set_the_run_s_progress_back() -> None:
    status = status_after(world(pod(0, generation=1, agent=progress(40)), pod(1), pod(2), status=training()))
    restoring = progress(0, 2, section="restore", first_step_time=0.0, train_loss=None)
    seen = world(pod(0, generation=2, agent=restoring), *[pod(i, generation=2) for i in (1, 2)], status=status)
    assert status_after(seen).step == 40


def test_the_reason_a_pod_cannot_run_is_in_the_running_condition() -> None:
    blocked = replace(pod(1), phase="Pending", agent=None, blocked=("ImagePullBackOff", "the image cannot be pulled"))
    status = status_after(world(pod(0), blocked))
    assert condition(status, "Running") == ("False", "ImagePullBackOff")


def test_a_micro_batch_that_was_halved_is_told_of_once_and_stays_in_the_status() -> None:
    halved = progress(9, micro_batch_sequences=2)
    members = (pod(0, generation=1, agent=halved), pod(1, generation=1), pod(2, generation=1))
    decided = plan(world(*members, status=status_after(world(pod(0), pod(1), pod(2)))))
    assert condition(decided.status, "MicroBatchReduced") == ("True", "OutOfMemory")
    (told,) = [event.message for event in decided.events if event.reason == "OutOfMemory"]
    assert "engine.microBatchSequences 4 ran out of memory: 2 are used, the global batch is the same" in told
    assert plan(world(*members, status=decided.status)).events == ()
    whole = (pod(0, generation=1, agent=progress(9, micro_batch_sequences=4)), *members[1:])
    assert "MicroBatchReduced" not in [c.type for c in status_after(world(*whole)).conditions]


def test_a_world_that_has_not_made_a_step_is_looked_at_each_second_whatever_the_last_one_has_said() -> None:
    """Else a word that a pod has not heard is said again after 7 s instead of 3: it happened."""
    trained = status_after(
        world(pod(0, generation=1, agent=progress(9)), *(pod(i, generation=1) for i in (1, 2)), status=training())
    )
    again = status_after(
        world(pod(0, generation=1, agent=progress(9)), failed(1, 1), pod(2, generation=1), status=trained)
    )
    assert again.generation == 2
    late = replace(pod(0, generation=2), agent=progress(9))
    starting = plan(world(late, pod(1, generation=2), pod(2, generation=2), status=again), NOW + 1)
    assert starting.status.state == "Starting"
    assert starting.requeue_after_seconds == 1.0
    steps = replace(late, agent=progress(10, generation=2))
    under_way = plan(world(steps, pod(1, generation=2), pod(2, generation=2), status=starting.status), NOW + 2)
    assert under_way.status.state == "Training"
    assert under_way.requeue_after_seconds == 5.0
