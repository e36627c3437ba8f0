"""Sources that are prepared before their stage starts, or while an earlier one trains."""

from collections.abc import Sequence
from typing import Any

from skywork_operator.api.status import NodeCounts
from skywork_operator.deciding.draft import Draft
from skywork_operator.policies import preparation
from skywork_operator.render import Defaults, prepare_config_map, prepare_job
from skywork_operator.world import Plan, World

POLL_SECONDS = 10.0
"""Only for what no watch tells; the Job's own progress comes as events."""


def next_reading(draft: Draft, world: World, stages: Sequence[str]) -> preparation.Step | None:
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


def wait_for(draft: Draft, stage: str, step: preparation.Step, defaults: Defaults) -> Plan:
    """Prepare what `stage` cannot start without."""
    broken = step.broken
    if broken is not None:
        draft.say("Prepared", False, *broken)
        draft.give_up(*broken)
        return draft.plan()
    _say_preparing(draft, step)
    draft.say("Running", False, "Preparing", f"stage {stage} waits for its sources")
    draft.say("Succeeded", None, "InProgress", "not all stages are trained yet")
    draft.update(state="Preparing", stage=stage, tokens_per_second=0, nodes=NodeCounts())
    return draft.plan(objects=_reading(draft, step, defaults), requeue_after_seconds=POLL_SECONDS)


def prepare_ahead(draft: Draft, world: World, stage: str, defaults: Defaults) -> tuple[dict[str, Any], ...]:
    """Objects that prepare what later stages read while `stage` trains: no GPU shall wait for text to be cleaned.

    A preparation that failed stops nothing yet; it fails the run when the stage that needs it is due.
    """
    stages = [planned.name for planned in draft.run.spec.stages]
    step = next_reading(draft, world, stages[stages.index(stage) + 1 :])
    if step is None:
        return ()
    broken = step.broken
    if broken is None:
        _say_preparing(draft, step)
        return _reading(draft, step, defaults)
    _warn_once(draft, *broken)
    draft.say("Prepared", False, *broken)
    return ()


def _say_preparing(draft: Draft, step: preparation.Step) -> None:
    reason, message = "InProgress", step.progress
    if step.job is not None and step.job.blocked is not None:
        reason, message = step.job.blocked[0], f"{message}; {step.job.blocked[1]}"
        _warn_once(draft, reason, message)
    draft.say("Prepared", False, reason, message)


def _warn_once(draft: Draft, reason: str, message: str) -> None:
    if draft.reason("Prepared") != reason:
        draft.tell("Warning", reason, message)


def _reading(draft: Draft, step: preparation.Step, defaults: Defaults) -> tuple[dict[str, Any], ...]:
    """The objects that the reading still lacks."""
    if step.job is not None:
        return ()
    job = prepare_job(draft.run, step.source, step.reading, defaults)
    # Only with the first Job: what this version of the operator would render may differ from what its pods read.
    return (prepare_config_map(draft.run, step.source), job) if step.first else (job,)
