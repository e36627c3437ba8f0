"""Suspending, queueing, resizing, deadlines and what is left behind, as tables over plain data."""

from dataclasses import replace
from typing import Any

import pytest
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.policies.membership import observe_generation, world_sizes
from skywork_operator.render import run_config
from skywork_operator.world import Job, Plan, Pod, World
from skywork_trainer.config import HANG, PEER_LOST, AgentPhase, AgentStatus, Failure, Role

from tests.unit.operator.build import (
    NOW,
    SPEC,
    ago,
    condition,
    failed,
    plan,
    pod,
    progress,
    run,
    status_after,
    world,
)
from tests.unit.operator.test_decide import training


def members(count: int = 3, *, step: int = 9, nodes: int | None = None) -> list[Pod]:
    found = [pod(i, generation=1, agent=progress(step) if i == 0 else None or pod(i, generation=1).agent) for i in
             range(count)]  # fmt: skip
    placed = [(p, p.membership) for p in found]
    return [replace(p, membership=word and word.model_copy(update={"nodes": nodes or count})) for p, word in placed]


# -- suspension ------------------------------------------------------------------------------------------------------


def test_suspending_deletes_the_job_so_that_its_pods_save_and_end() -> None:
    decided = plan(world(*members(), status=training(), suspend=True))
    assert decided.delete_jobs == ("demo-general",)
    assert decided.memberships == ()
    assert decided.status.state == "Suspending"
    assert condition(decided.status, "Suspended") == ("True", "Suspending")
    assert [event.reason for event in decided.events] == ["Suspended"]
    assert decided.status.restarts.total == 0


def test_a_job_that_is_going_is_not_deleted_again_and_the_end_is_told_once() -> None:
    first = plan(world(*members(), status=training(), suspend=True))
    seen = world(*[replace(p, terminating=True) for p in members()], status=first.status, suspend=True)
    seen = replace(seen, jobs={"general": Job(stage="general", uid="j", deleting=True)})
    second = plan(seen)
    assert (second.delete_jobs, second.events, second.status.state) == ((), (), "Suspending")
    done = plan(World(run=run(second.status, suspend=True)))
    assert (done.status.state, done.requeue_after_seconds, done.objects) == ("Suspended", None, ())
    assert plan(World(run=run(done.status, suspend=True))).status == done.status


def test_a_run_resumed_while_its_old_pods_still_save_waits_for_their_end() -> None:
    first = plan(world(*members(), status=training(), suspend=True)).status
    ending = World(run=run(first), jobs={"general": Job(stage="general", uid="j", deleting=True)})
    waiting = plan(ending)
    assert waiting.objects == ()
    resumed = plan(World(run=run(waiting.status)))
    assert [m["kind"] for m in resumed.objects] == ["ConfigMap", "Job"]
    assert [event.reason for event in resumed.events] == ["Resumed"]
    assert condition(resumed.status, "Suspended") == ("False", "Resumed")
    formed = plan(world(pod(0), pod(1), pod(2), status=resumed.status))
    assert {word.generation for _, word in formed.memberships} == {2}, "no generation number is handed out twice"
    assert formed.status.restarts.total == 0


def test_a_run_that_is_created_suspended_makes_nothing() -> None:
    decided = plan(World(run=run(suspend=True)))
    assert (decided.objects, decided.status.state) == ((), "Suspended")


# -- queueing --------------------------------------------------------------------------------------------------------

QUEUED = {"scheduling": {"queueName": "team-a"}}


def test_a_queued_run_s_job_waits_for_kueue_from_the_beginning() -> None:
    job = plan(World(run=run(**QUEUED))).objects[1]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert job["spec"]["suspend"] is True


def test_kueue_s_suspension_is_mirrored_and_never_fought() -> None:
    seen = replace(
        world(status=training(), **QUEUED), jobs={"general": Job(stage="general", uid="j", suspended=True, pods=3)}
    )
    decided = plan(seen)
    assert condition(decided.status, "Running") == ("False", "WaitingForQuota")
    assert decided == replace(Plan(status=decided.status), events=decided.events, requeue_after_seconds=60.0)
    assert decided.status.state == "Queued"
    assert plan(replace(seen, run=run(decided.status, **QUEUED))).events == ()


def test_being_evicted_by_kueue_costs_nothing_of_the_budget() -> None:
    gone = [replace(p, terminating=True) for p in members()]
    decided = plan(world(*gone, status=training(), **QUEUED))
    assert decided.status.restarts.without_progress == 0


def test_a_queued_run_that_gives_up_deletes_its_job_because_kueue_would_resume_a_suspended_one() -> None:
    broken = [pod(0, generation=1), failed(1, 1), pod(2, generation=1)]
    decided = plan(world(*broken, status=training(), failurePolicy={"restartsWithoutProgress": 0}, **QUEUED))
    assert (decided.suspend, decided.delete_jobs) == ((), ("demo-general",))


def test_a_job_that_a_person_suspended_is_left_to_that_person() -> None:
    seen = replace(world(status=training()), jobs={"general": Job(stage="general", uid="j", suspended=True, pods=3)})
    decided = plan(seen)
    assert condition(decided.status, "Running") == ("False", "JobSuspended")
    assert (decided.objects, decided.suspend, decided.delete_jobs) == ((), (), ())


# -- size ------------------------------------------------------------------------------------------------------------


def sized(most: int, *, has: int, pods: list[Pod], **nodes: Any) -> World:
    given = {"trainer": {"nodes": {"min": 1, "max": most, "shrinkAfter": "0s", **nodes}}}
    return replace(world(*pods, status=training(), **given), jobs={"general": Job(stage="general", uid="j", pods=has)})


def test_a_changed_number_of_nodes_changes_the_job_in_place() -> None:
    decided = plan(sized(5, has=3, pods=members()))
    assert decided.resize == (("demo-general", 5),)
    assert plan(sized(3, has=3, pods=members())).resize == ()


def test_pods_above_a_lowered_maximum_are_no_failure() -> None:
    gone = [*members(2, nodes=3), replace(pod(2, generation=1), terminating=True)]
    decided = plan(sized(2, has=2, pods=gone))
    assert [(r.reason, r.count) for r in decided.status.restarts.by_reason] == [("Resized", 1)]
    assert decided.status.restarts.without_progress == 0
    assert [w.nodes for _, w in decided.memberships] == [2, 2]


def test_a_world_larger_than_a_lowered_maximum_shrinks_by_saving_first() -> None:
    decided = plan(sized(2, has=3, pods=members(3), spares=1))
    trained = [(p.index, w.nodes, w.drain) for p, w in decided.memberships if w.role is Role.TRAIN]
    benched = [(p.index, w.drain) for p, w in decided.memberships if w.role is Role.STANDBY]
    assert (trained, benched) == ([(0, 2, True), (1, 2, True)], [(2, True)])


@pytest.mark.parametrize(
    ("allowed", "sizes"),
    [(None, [2, 3, 4, 5]), ([4, 2], [2, 4]), ([1, 2, 8], [2]), ([8], [2, 3, 4, 5])],
)
def test_only_allowed_world_sizes_between_min_and_max_are_trained_on(
    allowed: list[int] | None, sizes: list[int]
) -> None:
    assert world_sizes(fewest=2, most=5, allowed=allowed) == sizes


def test_with_allowed_sizes_the_largest_that_fits_is_taken_and_the_rest_stands_by() -> None:
    broken = [*members(3, nodes=4), replace(pod(3, generation=1), phase="Failed", agent=None)]
    decided = plan(sized(4, has=4, pods=broken, allowed=[1, 2, 4]))
    roles = {p.index: (w.role, w.nodes) for p, w in decided.memberships}
    assert roles == {0: (Role.TRAIN, 2), 1: (Role.TRAIN, 2), 2: (Role.STANDBY, 0)}


def test_a_world_grows_no_more_often_than_grow_after() -> None:
    grown = [*members(2), pod(2)]
    status = training().model_copy(update={"generation_start_time": ago(100)})
    nodes = {"min": 1, "max": 3, "growAfter": "90s"}
    seen = world(*grown, status=status, trainer={"nodes": nodes})
    assert {w.nodes for _, w in plan(seen).memberships} == {3}
    patient = world(*grown, status=status, trainer={"nodes": nodes | {"growAfter": "2m"}})
    assert plan(patient).memberships == ()


def test_a_world_that_trains_waits_until_the_pod_that_joins_it_is_warm() -> None:
    status = training().model_copy(update={"generation_start_time": ago(1000)})
    nodes = {"min": 1, "max": 3, "growAfter": "0s"}
    cold = world(*members(2), pod(2, ready=False), status=status, trainer={"nodes": nodes})
    assert plan(cold).memberships == ()
    # A member is one although it says that it is not well: whoever does not answer a probe is no reason to shrink.
    unwell = [*members(2)[:1], replace(members(2)[1], ready=False)]
    grown = plan(world(*unwell, pod(2), status=status, trainer={"nodes": nodes}))
    assert {word.nodes for _, word in grown.memberships} == {3}


@pytest.mark.parametrize(("warm", "taken"), [((2, 3), 2), ((3,), 3), ((), 2)])
def test_of_several_spares_a_warm_one_is_taken_and_a_cold_one_where_there_is_no_other(
    warm: tuple[int, ...], taken: int
) -> None:
    broken = [*members(1, nodes=2), replace(pod(1, generation=1), phase="Failed", agent=None)]
    spares = [pod(index, ready=index in warm) for index in (2, 3)]
    decided = plan(sized(2, has=4, pods=[*broken, *spares], spares=2))
    assert {p.index for p, word in decided.memberships if word.role is Role.TRAIN} == {0, taken}


def test_spares_that_stand_by_when_the_stage_ends_are_sent_home() -> None:
    done = [replace(pod(i, generation=1, phase=AgentPhase.DONE), phase="Succeeded", agent=None) for i in range(3)]
    seen = world(*done, pod(3), status=training(), trainer={"nodes": {"min": 3, "max": 3, "spares": 1}})
    decided = plan(seen)
    assert [(p.index, w.role) for p, w in decided.memberships] == [(3, Role.DONE)]
    assert decided.status.restarts.total == 0


# -- hangs -----------------------------------------------------------------------------------------------------------


def hung(index: int, *, at: float, waits: bool) -> Pod:
    said = Failure(time=at, rank=index, reason=HANG, message=f"rank {index} stands still", waits=waits, step=9)
    return pod(index, generation=1, agent=AgentStatus(phase=AgentPhase.FAILED, generation=1, rank=index, failure=said))


def test_a_hang_is_counted_when_all_ranks_have_told_where_they_stand_or_have_had_their_time() -> None:
    first = plan(world(pod(0, generation=1), hung(1, at=NOW, waits=True), pod(2, generation=1), status=training()))
    assert (first.memberships, first.status.restarts.total) == ((), 0)
    unreachable = replace(pod(2, generation=1), agent=None)
    other = plan(world(pod(0, generation=1), hung(1, at=NOW, waits=True), unreachable, status=training()))
    assert other.status.restarts.total == 0, "one that cannot be asked is no reason not to hear the others"
    told = [hung(0, at=NOW, waits=True), hung(1, at=NOW, waits=True), hung(2, at=NOW + 0.5, waits=False)]
    whole = plan(world(*told, status=training()), NOW + 1)
    (event,) = [e for e in whole.events if e.reason == HANG]
    assert event.message.startswith("generation 1 ended: rank 2 stands still; rank 0 stands still")
    late = plan(
        world(pod(0, generation=1), hung(1, at=NOW, waits=True), pod(2, generation=1), status=training()), NOW + 4
    )
    assert late.status.restarts.total == 1


# -- peers that only say that they have lost another ------------------------------------------------------------------


def echoed(victim: Pod, *, now: float = NOW, told: tuple[int, ...] = (0, 2)) -> Plan:
    """A pass at `now` over a world of three in which, at NOW, some say that they have lost a peer."""
    others = [
        failed(index, 1, reason=PEER_LOST, time=NOW) if index in told else pod(index, generation=1) for index in (0, 2)
    ]
    nodes = {"min": 2, "max": 3, "shrinkAfter": "0s"}
    return plan(world(others[0], victim, others[1], status=training(), trainer={"nodes": nodes}), now)


SILENT = replace(pod(1, generation=1), agent=None, limited=True)


@pytest.mark.parametrize(
    ("victim", "reason", "counted"),
    [
        pytest.param(replace(SILENT, phase="Failed"), "PodLost", 0, id="its container is gone"),
        pytest.param(replace(SILENT, phase="Failed", out_of_memory=True), "HostOutOfMemory", 1, id="out of memory"),
        pytest.param(replace(SILENT, terminating=True), "PodLost", 0, id="it is asked to leave"),
        pytest.param(failed(1, 1, reason="AppError"), "AppError", 1, id="its agent says why"),
        pytest.param(failed(1, 1, reason=PEER_LOST), PEER_LOST, 1, id="it has lost them, too: nobody's end"),
    ],
)
def test_what_lost_a_peer_is_waited_for_a_moment_and_then_named(victim: Pod, reason: str, counted: int) -> None:
    for early in (echoed(SILENT), echoed(SILENT, now=NOW + 4)):
        assert (early.memberships, early.status.restarts.total) == ((), 0)
        assert early.requeue_after_seconds is not None and early.requeue_after_seconds < 1
    known = echoed(victim, now=NOW + 0.5).status
    assert [(entry.reason, entry.count) for entry in known.restarts.by_reason] == [(reason, 1)]
    assert known.restarts.without_progress == counted
    assert known.recovery is not None and float(known.recovery.detected or 0) == 0.5


@pytest.mark.parametrize(
    ("victim", "now"),
    [
        pytest.param(SILENT, NOW + 5, id="nobody does within five seconds"),
        pytest.param(replace(SILENT, limited=False), NOW, id="it had no limit of memory to reach"),
    ],
)
@pytest.mark.parametrize("told", [(0, 2), (0,)], ids=["both miss it", "one has not noticed yet"])
def test_a_peer_that_nobody_can_say_more_of_is_lost_for_free_and_its_peers_go_on(
    victim: Pod, now: float, told: tuple[int, ...]
) -> None:
    decided = echoed(victim, now=now, told=told)
    assert [(entry.reason, entry.count) for entry in decided.status.restarts.by_reason] == [("PodLost", 1)]
    assert decided.status.restarts.without_progress == 0
    assert f"pod {SILENT.name} does not answer" in decided.events[0].message
    assert [(p.index, word.nodes) for p, word in decided.memberships] == [(0, 2), (2, 2)]


def test_only_members_of_which_nothing_else_is_known_are_silent() -> None:
    ended = replace(SILENT, index=2, phase="Failed")
    done = replace(SILENT, index=3, phase="Succeeded")
    assert observe_generation([pod(0, generation=1), SILENT, ended, done]).silent == (SILENT,)


def test_a_silent_member_explains_nothing_where_another_knows_what_was_wrong() -> None:
    decided = plan(world(failed(0, 1, reason="AppError"), SILENT, pod(2, generation=1), status=training()))
    assert [entry.reason for entry in decided.status.restarts.by_reason] == ["AppError"]


def test_members_that_have_not_told_of_their_loss_yet_are_waited_for_no_longer_than_a_moment() -> None:
    slow = pod(1, generation=1)
    assert echoed(slow, told=(0,)).memberships == ()
    assert [e.reason for e in echoed(slow, now=NOW + 3, told=(0,)).status.restarts.by_reason] == [PEER_LOST]


# -- recovery --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_recovery_add_up_to_the_whole() -> None:
    failure_time = NOW - 0.5
    broken = world(pod(0, generation=1), failed(1, 1, time=failure_time), pod(2, generation=1), status=training())
    status = plan(broken).status
    words = progress(9, 2, initialized_time=NOW + 0.9, restored_time=NOW + 1.2, first_step_time=NOW + 1.5)
    told = {"read_time": NOW + 0.2, "start_time": NOW + 0.3}
    pods = [pod(i, generation=2) for i in range(3)]
    pods = [replace(p, agent=p.agent and p.agent.model_copy(update=told)) for p in pods]
    pods[0] = replace(pods[0], agent=words.model_copy(update=told))
    found = status_after(world(*pods, status=status), NOW + 5).recovery
    assert found is not None and (found.generation, found.reason) == (2, "Killed")
    parts = [found.detected, found.decided, found.delivered, found.started, found.initialized, found.restored]
    assert [float(part or -1) for part in parts] == pytest.approx([0.5, 0.0, 0.2, 0.1, 0.6, 0.3], abs=0.002)
    assert float(found.first_step or 0) == pytest.approx(0.3, abs=0.002)
    assert float(found.total or 0) == pytest.approx(2.0, abs=0.002)


# -- ends ------------------------------------------------------------------------------------------------------------


def finished() -> SkyworkRunStatus:
    jobs = {s: Job(stage=s, uid=s, complete=True) for s in ("general", "stem")}
    return plan(World(run=run(training()), jobs=jobs)).status


def test_a_finished_run_is_deleted_after_its_time_to_live_and_not_before() -> None:
    over = World(run=run(finished(), ttlAfterFinished="1h"))
    early = plan(over, NOW + 3599)
    assert (early.delete_run, early.requeue_after_seconds) == (False, 1.0)
    assert plan(over, NOW + 3600).delete_run
    assert not plan(World(run=run(finished())), NOW + 1e9).delete_run


def test_a_run_that_takes_longer_than_its_deadline_saves_and_fails() -> None:
    status = training().model_copy(update={"start_time": ago(3600)})
    in_time = plan(world(*members(), status=status, activeDeadline="61m"))
    assert in_time.status.state == "Training"
    late = plan(world(*members(), status=status, activeDeadline="60m"))
    assert condition(late.status, "Failed") == ("True", "DeadlineExceeded")
    assert late.suspend == ("demo-general",), "pods of a suspended Job are asked to end, and save"


def test_appending_a_stage_raises_a_finished_run_and_it_trains_on() -> None:
    more = {"name": "more", "tokens": "1024", "learningRate": {"schedule": "Constant"}, "mixture": [{"source": "main"}]}
    decided = plan(World(run=run(finished(), stages=[*SPEC["stages"], more])))
    assert [m["metadata"]["name"] for m in decided.objects] == ["demo-more", "demo-more"]
    assert condition(decided.status, "Succeeded") == ("Unknown", "InProgress")
    assert decided.status.state == "Starting"
    assert decided.status.completion_time is None


def test_a_pass_over_each_of_these_states_changes_nothing_the_second_time() -> None:
    suspended = plan(World(run=run(suspend=True)))
    for seen in (
        world(*members(), status=training()),
        World(run=run(suspended.status, suspend=True)),
        World(run=run(finished())),
        replace(world(status=training()), jobs={"general": Job(stage="general", uid="j", suspended=True)}),
    ):
        once = plan(seen)
        again = plan(replace(seen, run=replace(seen.run, status=once.status)), NOW + 3)
        assert (again.status, again.events) == (once.status, ())


def test_members_keep_their_places_before_newcomers_with_lower_indexes() -> None:
    newcomer, kept = pod(0), [replace(pod(i, generation=1), name=f"kept-{i}") for i in (1, 2)]
    broken = replace(pod(3, generation=1), phase="Failed", agent=None)
    nodes = {"min": 2, "max": 2, "spares": 2}
    decided = plan(world(newcomer, *kept, broken, status=training(), trainer={"nodes": nodes}))
    assert [p.name for p, w in decided.memberships if w.role is Role.TRAIN] == ["kept-1", "kept-2"]


def test_a_member_that_does_not_answer_for_a_moment_is_a_member_still() -> None:
    quiet = [*members(2, nodes=3), replace(pod(2, generation=1), agent=None)]
    decided = plan(world(*quiet, status=training(), trainer={"nodes": {"min": 1, "max": 3, "shrinkAfter": "0s"}}))
    assert decided.memberships == ()
    assert decided.status.restarts.total == 0


# -- forks -----------------------------------------------------------------------------------------------------------


def fork(step: int) -> dict[str, Any]:
    return {"startFrom": {"uri": "s3://runs/parent", "step": step}}


def test_a_fork_begins_with_the_first_stage_that_its_checkpoint_does_not_end() -> None:
    steps = run_config(run(), "general").stage_steps(0)
    inside = plan(World(run=run(**fork(steps.stop - 1))))
    assert inside.status.stage == "general"
    behind = plan(World(run=run(**fork(steps.stop))))
    assert behind.status.stage == "stem"
    assert [record.name for record in behind.status.stages] == ["stem"]
    assert [m["metadata"]["name"] for m in behind.objects if m["kind"] == "Job"] == ["demo-stem"]


def test_a_fork_behind_the_last_stage_is_refused_with_the_step_where_that_ends() -> None:
    last = run_config(run(), "stem").stage_steps(1).stop
    refused = plan(World(run=run(**fork(last))))
    assert refused.objects == ()
    assert condition(refused.status, "Accepted") == ("False", "InvalidSpec")
    assert refused.events[0].message == (
        f"startFrom.step {last} is not before the end of the last stage (step {last}): append a stage"
    )


# -- gangs -----------------------------------------------------------------------------------------------------------


def gang(kind: str) -> dict[str, Any]:
    return {"scheduling": {"gang": kind, "priorityClassName": "training"}}


@pytest.mark.parametrize(
    ("kind", "version", "mark", "scheduler", "spec"),
    [
        (
            "Auto", "scheduling.k8s.io/v1beta1", ("spec", "schedulingGroup", "podGroupName"), None,
            {"schedulingPolicy": {"gang": {"minCount": 2}}, "priorityClassName": "training"},
        ),
        (
            "Auto", "scheduling.k8s.io/v1alpha2", ("spec", "schedulingGroup", "podGroupName"), None,
            {"schedulingPolicy": {"gang": {"minCount": 2}}},
        ),
        (
            "Volcano", "scheduling.volcano.sh/v1beta1", ("metadata", "annotations", "scheduling.k8s.io/group-name"),
            "volcano", {"minMember": 2, "priorityClassName": "training"},
        ),
        (
            "Coscheduling", "scheduling.x-k8s.io/v1alpha1", ("metadata", "labels", "scheduling.x-k8s.io/pod-group"),
            "scheduler-plugins-scheduler", {"minMember": 2},
        ),
    ],
)  # fmt: skip
def test_a_gang_s_pod_group_is_made_before_its_job_and_asks_for_the_fewest_nodes(
    kind: str, version: str, mark: tuple[str, ...], scheduler: str | None, spec: dict[str, Any]
) -> None:
    started = run(**gang(kind))
    assert started.spec.trainer.nodes.min == 2
    _, group, job = plan(World(run=started, pod_groups=version)).objects
    assert (group["kind"], group["apiVersion"], group["spec"]) == ("PodGroup", version, spec)
    assert group["metadata"]["ownerReferences"][0]["name"] == "demo"
    template = job["spec"]["template"]
    found: Any = template
    for field in mark:
        found = found[field]
    assert found == group["metadata"]["name"]
    assert template["spec"].get("schedulerName") == scheduler
    assert template["spec"]["schedulingGates"], "the operator's own gate stays"


def test_a_gang_of_another_size_is_another_group_for_the_old_one_s_size_may_be_fixed() -> None:
    def name(fewest: int) -> str:
        nodes = {"min": fewest, "max": 3}
        objects = plan(World(run=run(trainer={"nodes": nodes}), pod_groups="scheduling.k8s.io/v1alpha2")).objects
        return str(objects[1]["metadata"]["name"])

    assert name(2) != name(3)


@pytest.mark.parametrize("kind", ["Auto", "None"])
def test_without_a_gang_there_is_no_pod_group_and_the_cluster_s_own_scheduler(kind: str) -> None:
    objects = plan(World(run=run(**gang(kind)))).objects
    assert [m["kind"] for m in objects] == ["ConfigMap", "Job"]
    spec = objects[1]["spec"]["template"]["spec"]
    assert not {"schedulerName", "schedulingGroup"} & spec.keys()


def test_a_gang_whose_scheduler_is_not_installed_makes_nothing_and_says_so_once() -> None:
    first = plan(World(run=run(**gang("Volcano"))))
    assert first.objects == ()
    assert condition(first.status, "Running") == ("False", "GangSchedulerMissing")
    assert [event.reason for event in first.events] == ["GangSchedulerMissing"]
    again = plan(World(run=run(first.status, **gang("Volcano"))))
    assert (again.events, again.requeue_after_seconds) == ((), 30.0)
    installed = World(run=run(again.status, **gang("Volcano")), pod_groups="scheduling.volcano.sh/v1beta1")
    assert plan(installed).objects
