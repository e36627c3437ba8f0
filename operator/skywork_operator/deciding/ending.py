"""A run that is over: succeeded, failed, out of time, suspended; and what is then given back."""

from skywork_operator.api.quantities import parse_duration_seconds
from skywork_operator.api.status import NodeCounts, StageStatus
from skywork_operator.deciding.draft import Draft
from skywork_operator.deciding.hearing import hear
from skywork_operator.policies import goodput, losses, pace, report
from skywork_operator.render import object_name
from skywork_operator.times import seconds, timestamp
from skywork_operator.world import Job, Plan, PrepareJob, World

SUSPENDING_POLL_SECONDS = 2.0


def current_stage(draft: Draft, world: World) -> str | None:
    """First stage whose last step is not committed; records the end of each stage whose Job is complete."""
    past = report.stages_before_start(world.run)
    for stage in world.run.spec.stages:
        record = report.stage_record(draft.status, stage.name)
        if stage.name in past or (record is not None and record.completion_time is not None):
            continue
        job = world.jobs.get(stage.name)
        if job is None or not job.complete:
            return stage.name
        _complete_stage(draft, world, stage.name)
    return None


def _complete_stage(draft: Draft, world: World, stage: str) -> None:
    hear(draft, report.newest_progress(world.pods), stage)
    record = report.stage_record(draft.status, stage) or StageStatus(name=stage)
    done = record.model_copy(update={"completion_time": timestamp(draft.now)})
    draft.status = report.with_stage(draft.status, done)
    draft.update(generation_end="StageCompleted")
    moved = losses.moved(record.validation_loss)
    told = f"stage {stage} is trained: {record.steps} steps, {record.tokens} tokens"
    draft.tell("Normal", "StageCompleted", f"{told}; validation losses: {moved}" if moved else told)


def succeeded(draft: Draft) -> Plan:
    """All stages are trained."""
    message = f"all {len(draft.run.spec.stages)} stages are trained"
    draft.refuse_validation("all stages are trained")
    if not draft.holds("Succeeded"):
        draft.update(completion_time=timestamp(draft.now))
        took = pace.for_people(goodput.wall_seconds(draft.status, draft.now))
        told = (
            f"{draft.status.step} steps, {draft.status.tokens} tokens in {took}, {draft.status.restarts.total} restarts"
        )
        draft.tell("Normal", "Succeeded", f"{message}: {told}")
    draft.say("Running", False, "Finished", "all stages are trained")
    draft.say("Succeeded", True, "AllStagesTrained", message)
    draft.update(state="Succeeded", stage="", progress="100%", tokens_per_second=0, nodes=NodeCounts())
    draft.rest()
    return _until_forgotten(draft)


def failed(draft: Draft, world: World) -> Plan:
    """The run has given up: nothing holds nodes for it, and its checkpoints stay."""
    draft.refuse_validation("the run has failed")
    ended = {object_name(draft.run.name, job.stage): _ended(job) for job in world.jobs.values()}
    ended |= {job.name: _ended(job) for job in world.prepare_jobs}
    held = tuple(name for name, over in ended.items() if not over)
    if draft.run.spec.scheduling.queue_name is not None:
        # Whether a queued Job is suspended is Kueue's to say.
        return _until_forgotten(draft, delete_jobs=held)
    return _until_forgotten(draft, suspend=held)


def _ended(job: Job | PrepareJob) -> bool:
    return job.complete or job.suspended or job.deleting or job.failed is not None


def _until_forgotten(draft: Draft, **fields: object) -> Plan:
    ttl = draft.run.spec.ttl_after_finished
    if ttl is None or draft.status.completion_time is None:
        return draft.plan(**fields)
    left = seconds(draft.status.completion_time) + parse_duration_seconds(ttl) - draft.now
    if left > 0:
        return draft.plan(**fields, requeue_after_seconds=left)
    return draft.plan(**fields, delete_run=True)


def out_of_time(draft: Draft) -> float | None:
    """Fail the run when its active deadline has passed; otherwise return the seconds left, None without one."""
    limit, started = draft.run.spec.active_deadline, draft.status.start_time
    if limit is None or started is None:
        return None
    left = seconds(started) + parse_duration_seconds(limit) - draft.now
    if left <= 0:
        message = (
            f"the run has taken longer than activeDeadline {limit}; what it has trained is saved at its checkpoints"
        )
        draft.give_up("DeadlineExceeded", message)
    return left


def suspended(draft: Draft, world: World, stage: str) -> Plan:
    """Free all nodes: pods that are deleted save first, and nothing is made until the run is resumed.

    Jobs are deleted rather than suspended: Kueue would fight over the latter, and a new Job takes in what was edited.
    """
    hear(draft, report.newest_progress(world.pods), stage)
    held = [(object_name(draft.run.name, job.stage), job.deleting) for job in world.jobs.values() if _holds_pods(job)]
    held += [(job.name, job.deleting) for job in world.prepare_jobs if _holds_pods(job)]
    alive = sum(pod.phase in ("Pending", "Running") for pod in world.pods)
    begun = not draft.holds("Suspended")
    if draft.holds("Running"):
        draft.update(generation_end="Suspended")
    if held:
        message = f"spec.suspend is set: {alive} pods save and end"
        draft.say("Suspended", True, "Suspending", message)
        draft.update(state="Suspending")
    else:
        message = f"spec.suspend is set; training goes on behind step {draft.status.step} when it is unset"
        draft.say("Suspended", True, "Suspended", message)
        draft.update(state="Suspended")
    if begun:
        draft.tell("Normal", "Suspended", f"spec.suspend is set at step {draft.status.step}: all nodes are given back")
    draft.say("Running", False, "Suspended", message)
    draft.say("Succeeded", None, "InProgress", "not all stages are trained yet")
    draft.update(stage=stage, tokens_per_second=0, nodes=NodeCounts(desired=draft.run.spec.trainer.nodes.max))
    draft.rest()
    return draft.plan(
        delete_jobs=tuple(name for name, deleting in held if not deleting),
        requeue_after_seconds=SUSPENDING_POLL_SECONDS if held else None,
    )


def _holds_pods(job: Job | PrepareJob) -> bool:
    return not job.complete and job.failed is None


def resumed(draft: Draft) -> None:
    """Say that a suspension is over, if there was one."""
    if draft.holds("Suspended"):
        draft.tell("Normal", "Resumed", f"spec.suspend is unset: training goes on behind step {draft.status.step}")
        draft.say("Suspended", False, "Resumed", "spec.suspend is unset")
