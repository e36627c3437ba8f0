"""What rank 0 reports, taken over into the status; what is wrong is told of once, and stays there."""

from skywork_trainer.config import AgentStatus, Progress

from skywork_operator.api.quantities import parse_quantity
from skywork_operator.deciding.draft import Draft
from skywork_operator.policies import diagnosis, goodput, losses, pace, report
from skywork_operator.policies.conditions import find


def hear(draft: Draft, words: AgentStatus | None, stage: str) -> None:
    """Take over what rank 0 says; None where nobody has said anything."""
    if words is None:
        return
    before = draft.status
    draft.status = report.with_progress(before, words, draft.run, stage)
    draft.update(time=goodput.heard(before.time, words, goodput.wall_seconds(before, draft.now)))
    _warn(draft, words)
    if words.progress is None or words.generation < before.generation:
        return
    if draft.status.step != before.step or before.eta is None:
        _estimate(draft, words.progress)
    _diagnose(draft, words.progress)
    _note_validation(draft, words.progress)


def _warn(draft: Draft, words: AgentStatus) -> None:
    warnings = report.warnings(words, draft.status)
    if warnings:
        if find(draft.status.conditions, "DataRepeated") is None:
            draft.tell("Warning", "SourceRepeated", warnings)
        draft.say("DataRepeated", True, "SourceRepeated", warnings)
    corrupt, before = report.corrupt(words, draft.status), find(draft.status.conditions, "CheckpointCorrupt")
    if corrupt:
        if before is None or before.message != corrupt:
            draft.tell("Warning", "CheckpointCorrupt", corrupt)
        draft.say("CheckpointCorrupt", True, "PassedOver", corrupt)
    elif corrupt == "" and before is not None and before.status == "True":
        draft.say("CheckpointCorrupt", False, "NoneFound", "every checkpoint can be read")
    reduced = report.reduced_micro_batch(words, draft.run.spec)
    if reduced and find(draft.status.conditions, "MicroBatchReduced") is None:
        draft.tell("Warning", "OutOfMemory", reduced)
    if reduced:
        draft.say("MicroBatchReduced", True, "OutOfMemory", reduced)


def _estimate(draft: Draft, progress: Progress) -> None:
    """Say when training ends; not while the step stands still, for then nothing is known that was not before."""
    batch = parse_quantity(draft.run.spec.batch.global_tokens)
    left = (draft.status.target_tokens - draft.status.tokens) // batch
    took = pace.seconds_per_step(progress, batch)
    if took is not None and left >= 0:
        said = pace.estimate(draft.status.estimated_completion, left, took, draft.now)
        draft.update(eta=said.left, estimated_completion=said.completion)


def _diagnose(draft: Draft, progress: Progress) -> None:
    """Make what the detectors say conditions; a run that is being suspended does not train any more."""
    for said in diagnosis.accepted(progress.diagnoses, draft.status.conditions):
        if draft.run.spec.suspend and said.type in diagnosis.MOMENTARY:
            continue
        if said.found and not draft.holds(said.type):
            draft.tell("Warning", said.type, said.message)
        draft.say(said.type, said.found, said.reason, said.message)


def _note_validation(draft: Draft, progress: Progress) -> None:
    """Tell of a validation that was asked for, once it is done."""
    if draft.validate_request and progress.validate_request == draft.validate_request:
        step = max((said.step for said in progress.validation), default=progress.step)
        told = losses.now(draft.status.validation_loss) or "no domain could be measured"
        draft.tell("Normal", "Validated", f"as asked, at step {step}: {told}")
        draft.validation_done(step)
