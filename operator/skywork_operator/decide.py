"""decide(world, now) -> Plan: what should happen next, a pure function of what was seen.

Nothing is remembered between passes but what lies in the cluster: the run's status, its Jobs, and its pods with
their annotations and agents. A pass that died half-way is therefore repeated, never continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skywork_trainer.config import AgentStatus

from skywork_operator.api.quantities import parse_duration_seconds
from skywork_operator.api.status import NodeCounts, SkyworkRunStatus, StageStatus
from skywork_operator.policies import failures, membership, preparation, report
from skywork_operator.policies.conditions import find, set_condition
from skywork_operator.render import (
    Defaults,
    object_name,
    prepare_config_map,
    prepare_job,
    prepared_by_name,
    run_config,
    stage_objects,
)
from skywork_operator.render import preparation as trainer_preparation
from skywork_operator.times import seconds, timestamp
from skywork_operator.world import Event, Job, Plan, Pod, PrepareJob, Run, World

POLL_SECONDS = 1.0
PREPARE_POLL_SECONDS = 10.0
"""Only for what no watch tells; the Job's own progress comes as events."""
GROW_AFTER_SECONDS = 30.0


def decide(world: World, now: float, defaults: Defaults) -> Plan:
    """The plan of one pass over one run."""
    run = world.run
    try:
        _check(run)
    except ValueError as error:
        return _rejected(run, report.sentence(error), now)
    draft = _Draft(run=run, status=run.status, now=now)
    accepted = find(run.status.conditions, "Accepted")
    if accepted is None or accepted.status != "True":
        draft.say("Accepted", True, "Valid", "the spec is complete and consistent")
    stage = _current_stage(world, draft)
    if stage is None:
        return _succeeded(draft)
    job = world.jobs.get(stage)
    if draft.failed:
        return _release(draft, world)
    if job is not None and job.failed is not None:
        return _failed_job(draft, world, stage, job)
    if job is None:
        step = _next_reading(draft, world, [stage])
        return _start_stage(draft, stage, defaults) if step is None else _wait_for(draft, stage, step, defaults)
    ahead = _prepare_ahead(draft, world, stage, defaults)
    trained = _train(draft, world, stage)
    return replace(trained, objects=(*trained.objects, *ahead))


def _check(run: Run) -> None:
    """Raise ValueError when a stage or a preparation cannot be rendered, whenever its turn would be."""
    # The last stage's configuration holds all the others.
    run_config(run, run.spec.stages[-1].name)
    preparation.check(run.spec)
    for name in prepared_by_name(run.spec):
        try:
            trainer_preparation(run, name)
        except ValueError as error:
            raise ValueError(f"prepare of {name}: {report.sentence(error)}") from error


@dataclass
class _Draft:
    """The status and events that a pass collects before it returns them as a Plan."""

    run: Run
    status: SkyworkRunStatus
    now: float
    events: tuple[Event, ...] = ()

    @property
    def failed(self) -> bool:
        condition = find(self.status.conditions, "Failed")
        return condition is not None and condition.status == "True"

    def say(self, type: str, status: bool | None, reason: str, message: str) -> None:
        conditions = set_condition(
            self.status.conditions,
            type=type,
            status=status,
            reason=reason,
            message=message,
            generation=self.run.generation,
            now=self.now,
        )
        self.update(conditions=conditions)

    def tell(self, kind: str, reason: str, message: str) -> None:
        self.events = (*self.events, Event(kind=kind, reason=reason, message=message))

    def hear(self, words: AgentStatus | None, stage: str) -> None:
        """Take over what rank 0 reports; what is wrong is told of once, and stays in the status."""
        if words is None:
            return
        self.status = report.with_progress(self.status, words, self.run, stage)
        warnings = report.warnings(words, self.status)
        if warnings:
            if find(self.status.conditions, "DataRepeated") is None:
                self.tell("Warning", "SourceRepeated", warnings)
            self.say("DataRepeated", True, "SourceRepeated", warnings)
        corrupt, before = report.corrupt(words, self.status), find(self.status.conditions, "CheckpointCorrupt")
        if corrupt:
            if before is None or before.message != corrupt:
                self.tell("Warning", "CheckpointCorrupt", corrupt)
            self.say("CheckpointCorrupt", True, "PassedOver", corrupt)
        elif corrupt == "" and before is not None and before.status == "True":
            self.say("CheckpointCorrupt", False, "NoneFound", "every checkpoint can be read")
        reduced = report.reduced_micro_batch(words, self.run.spec)
        if reduced and find(self.status.conditions, "MicroBatchReduced") is None:
            self.tell("Warning", "OutOfMemory", reduced)
        if reduced:
            self.say("MicroBatchReduced", True, "OutOfMemory", reduced)

    def update(self, **fields: object) -> None:
        self.status = self.status.model_copy(update=fields)

    def plan(self, **fields: object) -> Plan:
        status = self.status.model_copy(update={"observed_generation": self.run.generation})
        return replace(Plan(status=status, events=self.events), **fields)  # type: ignore[arg-type]


def _rejected(run: Run, message: str, now: float) -> Plan:
    draft = _Draft(run=run, status=run.status, now=now)
    before = find(run.status.conditions, "Accepted")
    if before is None or before.message != message:
        draft.tell("Warning", "InvalidSpec", message)
    draft.say("Accepted", False, "InvalidSpec", message)
    draft.update(state="Invalid")
    return draft.plan()


def _current_stage(world: World, draft: _Draft) -> str | None:
    """First stage whose last step is not committed; records the end of each stage whose Job is complete."""
    for stage in world.run.spec.stages:
        record = report.stage_record(draft.status, stage.name)
        if record is not None and record.completion_time is not None:
            continue
        job = world.jobs.get(stage.name)
        if job is None or not job.complete:
            return stage.name
        _complete_stage(draft, world, stage.name)
    return None


def _complete_stage(draft: _Draft, world: World, stage: str) -> None:
    draft.hear(report.newest_progress(world.pods), stage)
    record = report.stage_record(draft.status, stage) or StageStatus(name=stage)
    done = record.model_copy(update={"completion_time": timestamp(draft.now)})
    draft.status = report.with_stage(draft.status, done)
    draft.tell("Normal", "StageCompleted", f"stage {stage} is trained: {record.steps} steps, {record.tokens} tokens")


def _succeeded(draft: _Draft) -> Plan:
    before = find(draft.status.conditions, "Succeeded")
    if before is None or before.status != "True":
        draft.tell("Normal", "Succeeded", f"all {len(draft.run.spec.stages)} stages are trained")
    draft.say("Running", False, "Finished", "all stages are trained")
    draft.say("Succeeded", True, "AllStagesTrained", f"all {len(draft.run.spec.stages)} stages are trained")
    draft.update(state="Succeeded", stage="", progress="100%", tokens_per_second=0, nodes=NodeCounts())
    return draft.plan()


def _next_reading(draft: _Draft, world: World, stages: Sequence[str]) -> preparation.Step | None:
    """What is to be done next before all of `stages` may start, None when nothing is; records what was done."""
    awaited = False
    for stage in stages:
        outcome = preparation.advance(draft.run, draft.status, world.prepare_jobs, stage)
        awaited |= bool(outcome.phases)
        if outcome.phases:
            draft.status = preparation.with_phases(draft.status, draft.run.spec, outcome.phases)
        for source in outcome.begun:
            draft.tell("Normal", "PrepareStarted", f"source {source} is prepared for stage {stage}")
        for source in outcome.finished:
            draft.tell("Normal", "SourcePrepared", f"source {source} is prepared")
        if outcome.step is not None:
            return outcome.step
    if awaited:
        draft.say("Prepared", True, "SourcesPrepared", f"all that stage {stages[-1]} needs is prepared")
    return None


def _wait_for(draft: _Draft, stage: str, step: preparation.Step, defaults: Defaults) -> Plan:
    broken = step.broken
    if broken is not None:
        draft.say("Prepared", False, *broken)
        return _give_up(draft, *broken)
    _say_preparing(draft, step)
    draft.say("Running", False, "Preparing", f"stage {stage} waits for its sources")
    draft.say("Succeeded", None, "InProgress", "not all stages are trained yet")
    draft.update(state="Preparing", stage=stage, tokens_per_second=0, nodes=NodeCounts())
    return draft.plan(objects=_reading(draft, step, defaults), requeue_after_seconds=PREPARE_POLL_SECONDS)


def _prepare_ahead(draft: _Draft, world: World, stage: str, defaults: Defaults) -> tuple[dict[str, Any], ...]:
    """Objects that prepare what later stages read while `stage` trains: no GPU shall wait for text to be cleaned.

    A preparation that failed stops nothing yet; it fails the run when the stage that needs it is due.
    """
    stages = [planned.name for planned in draft.run.spec.stages]
    step = _next_reading(draft, world, stages[stages.index(stage) + 1 :])
    if step is None:
        return ()
    broken = step.broken
    if broken is None:
        _say_preparing(draft, step)
        return _reading(draft, step, defaults)
    _warn_once(draft, *broken)
    draft.say("Prepared", False, *broken)
    return ()


def _say_preparing(draft: _Draft, step: preparation.Step) -> None:
    reason, message = "InProgress", step.progress
    if step.job is not None and step.job.blocked is not None:
        reason, message = step.job.blocked[0], f"{message}; {step.job.blocked[1]}"
        _warn_once(draft, reason, message)
    draft.say("Prepared", False, reason, message)


def _warn_once(draft: _Draft, reason: str, message: str) -> None:
    before = find(draft.status.conditions, "Prepared")
    if before is None or before.reason != reason:
        draft.tell("Warning", reason, message)


def _reading(draft: _Draft, step: preparation.Step, defaults: Defaults) -> tuple[dict[str, Any], ...]:
    """The objects that the reading still lacks."""
    if step.job is not None:
        return ()
    job = prepare_job(draft.run, step.source, step.reading, defaults)
    # Only with the first Job: what this version of the operator would render may differ from what its pods read.
    return (prepare_config_map(draft.run, step.source), job) if step.first else (job,)


def _start_stage(draft: _Draft, stage: str, defaults: Defaults) -> Plan:
    record = report.stage_record(draft.status, stage)
    if record is None:
        draft.status = report.with_stage(draft.status, StageStatus(name=stage, start_time=timestamp(draft.now)))
        draft.tell("Normal", "StageStarted", f"stage {stage} asks for {draft.run.spec.trainer.nodes.max} nodes")
    draft.say("Running", False, "Starting", f"stage {stage} waits for its pods")
    draft.update(state="Starting", stage=stage)
    draft.say("Succeeded", None, "InProgress", "not all stages are trained yet")
    objects = tuple(stage_objects(draft.run, stage, defaults))
    return draft.plan(objects=objects, requeue_after_seconds=POLL_SECONDS)


def _failed_job(draft: _Draft, world: World, stage: str, job: Job) -> Plan:
    said = [pod.last_words for pod in world.pods if pod.last_words is not None and pod.last_words.failure is not None]
    failure = min((w.failure for w in said if w.failure is not None), key=lambda f: (f.retryable, f.time), default=None)
    reason = failure.reason if failure is not None else "JobFailed"
    message = failure.message if failure is not None else (job.failed or f"the Job of stage {stage} failed")
    return _give_up(draft, reason, f"stage {stage}: {message}")


def _give_up(draft: _Draft, reason: str, message: str) -> Plan:
    draft.tell("Warning", reason, message)
    draft.say("Running", False, reason, message)
    draft.say("Succeeded", False, reason, message)
    draft.say("Failed", True, reason, message)
    draft.update(state="Failed", tokens_per_second=0)
    return draft.plan()


def _train(draft: _Draft, world: World, stage: str) -> Plan:
    spec = draft.run.spec
    generation = membership.observe_generation(world.pods)
    words = report.newest_progress(world.pods)
    draft.hear(words, stage)
    draft.update(
        stage=stage,
        nodes=NodeCounts(
            desired=spec.trainer.nodes.max,
            ready=sum(pod.usable or pod.phase == "Succeeded" for pod in world.pods),
            training=generation.nodes if generation.intact else 0,
        ),
    )
    if generation.intact:
        return _go_on(draft, world, generation, words)
    if generation.finished:
        # A node that came too late for the world still owes the Job its index; alone it finds the stage trained.
        late = any(pod.usable for pod in world.pods)
        return _form_world(draft, world, stage, generation) if late else draft.plan(requeue_after_seconds=POLL_SECONDS)
    # status.generation runs ahead of the pods between the two writes of a pass: that end is counted already.
    if generation.number and generation.number >= draft.status.generation and not _counted(draft):
        _count_end(draft, generation)
        if draft.status.restarts.without_progress > spec.failure_policy.restarts_without_progress:
            _give_up_on(draft, generation)
            return _release(draft, world)
    return _form_world(draft, world, stage, generation)


def _counted(draft: _Draft) -> bool:
    running = find(draft.status.conditions, "Running")
    return running is not None and running.status == "False"


def _go_on(draft: _Draft, world: World, generation: membership.Generation, words: AgentStatus | None) -> Plan:
    started = words is not None and words.progress is not None and words.progress.first_step_time > 0
    step = words.progress.step if words is not None and words.progress is not None else draft.status.step
    draft.say("Running", True, "Training", f"generation {generation.number} trains on {generation.nodes} nodes")
    draft.update(state="Training" if started else "Starting", generation=generation.number)
    if started and words is not None and words.progress is not None and words.generation == generation.number:
        draft.update(first_step_time=timestamp(words.progress.first_step_time))
    spare = [pod for pod in world.pods if pod.usable and not pod.trains(generation.number)]
    young = seconds(draft.status.generation_start_time or timestamp(draft.now)) > draft.now - GROW_AFTER_SECONDS
    if spare and started and not young and generation.nodes < draft.run.spec.trainer.nodes.max:
        grown = [pod for pod in world.pods if pod.usable]
        draft.tell(
            "Normal", "Growing", f"{len(grown)} nodes are ready: the world grows from {generation.nodes} at step {step}"
        )
        return _new_generation(draft, grown[: draft.run.spec.trainer.nodes.max], generation.number + 1, drain=True)
    return draft.plan(requeue_after_seconds=POLL_SECONDS)


def _count_end(draft: _Draft, generation: membership.Generation) -> None:
    ended = failures.classify(generation)
    newest = draft.status.last_checkpoint.step if draft.status.last_checkpoint is not None else 0
    draft.update(restarts=failures.count(draft.status.restarts, ended, checkpoint_step=newest))
    draft.say("Running", False, ended.reason, f"generation {generation.number} ended: {ended.message}")
    draft.update(state="Recovering", tokens_per_second=0)
    draft.tell("Warning", ended.reason, f"generation {generation.number} ended: {ended.message}")


def _give_up_on(draft: _Draft, generation: membership.Generation) -> None:
    ended = failures.classify(generation)
    budget = draft.run.spec.failure_policy.restarts_without_progress
    _give_up(
        draft,
        ended.reason,
        f"{draft.status.restarts.without_progress} generations in a row failed without a new checkpoint "
        f"(failurePolicy.restartsWithoutProgress is {budget}); the last: {ended.message}",
    )


def _release(draft: _Draft, world: World) -> Plan:
    """Suspend the Jobs of a run that has given up: nothing holds nodes for it, and its checkpoints stay."""
    ended = {object_name(draft.run.name, job.stage): _ended(job) for job in world.jobs.values()}
    ended |= {job.name: _ended(job) for job in world.prepare_jobs}
    return draft.plan(suspend=tuple(name for name, over in ended.items() if not over))


def _ended(job: Job | PrepareJob) -> bool:
    return job.complete or job.suspended or job.failed is not None


def _form_world(draft: _Draft, world: World, stage: str, generation: membership.Generation) -> Plan:
    spec = draft.run.spec
    waited = draft.now - _waiting_since(draft, stage)
    pause = failures.backoff_seconds(draft.status.restarts.without_progress) - waited
    if generation.number and pause > 0:
        return draft.plan(requeue_after_seconds=pause)
    chosen = membership.next_world(
        pods=world.pods,
        wanted=spec.trainer.nodes.max,
        fewest=spec.trainer.nodes.min,
        waited_seconds=waited,
        shrink_after_seconds=parse_duration_seconds(spec.trainer.nodes.shrink_after),
    )
    if chosen is None:
        _say_why_waiting(draft, world, stage)
        return draft.plan(requeue_after_seconds=POLL_SECONDS)
    # Never a number that was handed out before, not even one that died with its pass: some pod may have seen it.
    number = max(draft.status.generation, generation.number) + 1
    return _new_generation(draft, chosen, number, drain=False)


def _waiting_since(draft: _Draft, stage: str) -> float:
    """When the last world ended, or the stage began: what was prepared before that is no time waited for pods."""
    running = find(draft.status.conditions, "Running")
    record = report.stage_record(draft.status, stage)
    ended = seconds(running.last_transition_time) if running is not None else draft.now
    began = seconds(record.start_time) if record is not None and record.start_time is not None else ended
    return max(ended, began)


def _new_generation(draft: _Draft, chosen: list[Pod], number: int, *, drain: bool) -> Plan:
    draft.tell("Normal", "GenerationStarted", f"generation {number} trains on {len(chosen)} nodes")
    draft.say("Running", True, "Training", f"generation {number} trains on {len(chosen)} nodes")
    draft.update(
        state="Starting",
        generation=number,
        generation_start_time=timestamp(draft.now),
        first_step_time=None,
        nodes=draft.status.nodes.model_copy(update={"training": len(chosen)}),
    )
    words = tuple(membership.places(chosen, generation=number, drain=drain))
    return draft.plan(memberships=words, requeue_after_seconds=POLL_SECONDS)


def _say_why_waiting(draft: _Draft, world: World, stage: str) -> None:
    usable = sum(pod.usable for pod in world.pods)
    blocked = next((pod for pod in world.pods if pod.blocked is not None), None)
    before = find(draft.status.conditions, "Running")
    waiting = f"stage {stage}: {usable} of {draft.run.spec.trainer.nodes.max} nodes are ready"
    if blocked is not None and blocked.blocked is not None:
        reason, message = blocked.blocked
        if before is None or before.reason != reason:
            draft.tell("Warning", reason, f"pod {blocked.name}: {message}")
        draft.say("Running", False, reason, f"{waiting}; pod {blocked.name}: {message}")
    elif before is None or before.status != "False" or before.reason in ("Starting", "WaitingForPods"):
        draft.say("Running", False, "WaitingForPods", waiting)
