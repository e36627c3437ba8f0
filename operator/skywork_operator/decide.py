"""decide(world, now) -> Plan: what should happen next, a pure function of what was seen.

Nothing is remembered between passes but what lies in the cluster: the run's status, its Jobs, and its pods with
their annotations and agents. A pass that died half-way is therefore repeated, never continued.
"""

from dataclasses import replace

from skywork_trainer.config import RunConfig

from skywork_operator.api.status import NodeCounts, StageStatus
from skywork_operator.deciding import ending, preparing, training
from skywork_operator.deciding.draft import Draft
from skywork_operator.policies import nodes, preparation, report, staleness, strikes
from skywork_operator.policies.conditions import find
from skywork_operator.render import RUN_LABEL, Defaults, prepared_by_name, run_config, stage_objects, wants_gang
from skywork_operator.render import preparation as trainer_preparation
from skywork_operator.times import timestamp
from skywork_operator.world import Job, Plan, Run, World

_GANG_POLL_SECONDS = 30.0
"""No watch tells of a new API."""


def decide(world: World, now: float, defaults: Defaults) -> Plan:
    """The plan of one pass over one run."""
    run = world.run
    draft = Draft(run=run, status=run.status, now=now)
    try:
        plan_of_run = _checked(run)
    except ValueError as error:
        return _rejected(draft, report.sentence(error))
    if not draft.holds("Accepted"):
        draft.say("Accepted", True, "Valid", "the spec is complete and consistent")
    draft.update(
        selector=f"{RUN_LABEL}={run.name}",
        target_tokens=report.target_tokens(plan_of_run),
        checkpoint_interval_seconds=staleness.asked_seconds(run.spec),
        node_strikes=strikes.forgiven(
            run.status.node_strikes,
            policy=run.spec.failure_policy.avoid_nodes,
            nodes=run.spec.trainer.nodes.max,
            now=now,
        ),
    )
    if not run.spec.validation.domains:
        draft.refuse_validation("validation.domains names none")
    world = replace(world, pods=nodes.judged(world.pods, world.nodes, now))
    stage = ending.current_stage(draft, world)
    if draft.holds("Failed"):
        return ending.failed(draft, world)
    if stage is None:
        return ending.succeeded(draft)
    left = ending.out_of_time(draft)
    plan = ending.failed(draft, world) if draft.holds("Failed") else _unfinished(draft, world, stage, defaults)
    due = [seconds for seconds in (plan.requeue_after_seconds, left) if seconds is not None and seconds > 0]
    return replace(plan, requeue_after_seconds=min(due, default=None))


def _unfinished(draft: Draft, world: World, stage: str, defaults: Defaults) -> Plan:
    if draft.run.spec.suspend:
        return ending.suspended(draft, world, stage)
    job = world.jobs.get(stage)
    if job is not None and job.failed is not None:
        return _failed_job(draft, world, stage, job)
    if job is not None and job.deleting:
        draft.say("Running", False, "WaitingForPods", f"stage {stage}: pods of its old Job are ending")
        return draft.plan(requeue_after_seconds=training.STARTING_POLL_SECONDS)
    ending.resumed(draft)
    if job is None:
        step = preparing.next_reading(draft, world, [stage])
        if step is not None:
            return preparing.wait_for(draft, stage, step, defaults)
        if wants_gang(world.run) and world.pod_groups is None:
            return _no_gang(draft, stage)
        return _start_stage(draft, stage, defaults, world.pod_groups)
    ahead = preparing.prepare_ahead(draft, world, stage, defaults)
    trained = _held(draft, stage, job) if job.suspended else training.train(draft, world, stage)
    return replace(trained, objects=(*trained.objects, *ahead))


def _checked(run: Run) -> RunConfig:
    """The configuration of the whole run.

    Raises ValueError when a stage or a preparation cannot be rendered, whenever its turn would be.
    """
    # The last stage's configuration holds all the others.
    config = run_config(run, run.spec.stages[-1].name)
    report.stages_before_start(run)
    preparation.check(run.spec)
    for name in prepared_by_name(run.spec):
        try:
            trainer_preparation(run, name)
        except ValueError as error:
            raise ValueError(f"prepare of {name}: {report.sentence(error)}") from error
    return config


def _rejected(draft: Draft, message: str) -> Plan:
    before = find(draft.status.conditions, "Accepted")
    if before is None or before.message != message:
        draft.tell("Warning", "InvalidSpec", message)
    draft.say("Accepted", False, "InvalidSpec", message)
    draft.update(state="Invalid")
    return draft.plan()


def _start_stage(draft: Draft, stage: str, defaults: Defaults, pod_groups: str | None) -> Plan:
    record = report.stage_record(draft.status, stage)
    if record is None:
        draft.status = report.with_stage(draft.status, StageStatus(name=stage, start_time=timestamp(draft.now)))
        draft.tell("Normal", "StageStarted", f"stage {stage} asks for {draft.run.spec.trainer.nodes.max} nodes")
    if draft.status.start_time is None:
        draft.update(start_time=timestamp(draft.now))
    # In the words of the next pass: it finds no pods yet, either, and has nothing to write.
    draft.say("Running", False, "WaitingForPods", report.waiting_sentence(stage, 0, draft.run.spec))
    none_yet = NodeCounts(desired=draft.run.spec.trainer.nodes.max)
    draft.update(state="Starting", stage=stage, nodes=none_yet, completion_time=None)
    draft.say("Succeeded", None, "InProgress", "not all stages are trained yet")
    objects = tuple(stage_objects(draft.run, stage, defaults, pod_groups))
    return draft.plan(objects=objects, requeue_after_seconds=training.STARTING_POLL_SECONDS)


def _no_gang(draft: Draft, stage: str) -> Plan:
    """Nothing is made: pods that no scheduler takes up would wait without a word."""
    gang = draft.run.spec.scheduling.gang
    message = f"stage {stage}: scheduling.gang is {gang}, and the cluster has no PodGroups of {gang}: install it"
    if draft.reason("Running") != "GangSchedulerMissing":
        draft.tell("Warning", "GangSchedulerMissing", message)
    draft.say("Running", False, "GangSchedulerMissing", message)
    draft.say("Succeeded", None, "InProgress", "not all stages are trained yet")
    draft.update(state="Starting", stage=stage)
    return draft.plan(requeue_after_seconds=_GANG_POLL_SECONDS)


def _failed_job(draft: Draft, world: World, stage: str, job: Job) -> Plan:
    said = [pod.last_words for pod in world.pods if pod.last_words is not None and pod.last_words.failure is not None]
    failure = min((w.failure for w in said if w.failure is not None), key=lambda f: (f.retryable, f.time), default=None)
    reason = failure.reason if failure is not None else "JobFailed"
    message = failure.message if failure is not None else (job.failed or f"the Job of stage {stage} failed")
    draft.give_up(reason, f"stage {stage}: {message}")
    return draft.plan()


def _held(draft: Draft, stage: str, job: Job) -> Plan:
    """The Job is suspended, and not by us: whoever did it will say when it may go on."""
    queue = draft.run.spec.scheduling.queue_name
    if queue is not None:
        reason, message = "WaitingForQuota", f"stage {stage} waits in queue {queue} for Kueue to admit it"
    else:
        reason, message = "JobSuspended", f"somebody has suspended Job {draft.run.name}-{stage}; unset its spec.suspend"
    if draft.reason("Running") != reason:
        draft.tell("Normal" if queue else "Warning", reason, message)
    if draft.holds("Running"):
        draft.update(generation_end=reason)
    draft.say("Running", False, reason, message)
    draft.update(state="Queued" if queue else "Suspended", stage=stage, tokens_per_second=0)
    draft.rest()
    return draft.plan(requeue_after_seconds=60.0)
