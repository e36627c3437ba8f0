"""What the agents say, as the run's status."""

from collections.abc import Sequence

from pydantic import ValidationError
from skywork_trainer.config import AgentStatus, Progress, RunConfig

from skywork_operator.api.quantities import parse_quantity, short_quantity
from skywork_operator.api.status import (
    Checkpoint,
    SkyworkRunStatus,
    SourceCount,
    StageDomain,
    StageStatus,
)
from skywork_operator.api.types import SkyworkRunSpec
from skywork_operator.policies import losses
from skywork_operator.policies.preparation import with_epochs
from skywork_operator.render import run_config
from skywork_operator.times import timestamp
from skywork_operator.world import Pod, Run


def sentence(error: ValueError) -> str:
    """A validation error as one sentence that names each field."""
    if isinstance(error, ValidationError):
        parts = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()]
        return "; ".join(part.removeprefix("Value error, ") for part in parts)
    return str(error)


def newest_progress(pods: Sequence[Pod]) -> AgentStatus | None:
    """The newest word of a rank 0, from a live agent or from the last words of one that ended."""
    said = [
        words
        for pod in pods
        for words in (pod.agent, pod.last_words)
        if words is not None and words.progress is not None and words.progress.time > 0
    ]
    return max(said, key=lambda w: (w.generation, w.progress.time if w.progress else 0.0), default=None)


def stages_before_start(run: Run) -> frozenset[str]:
    """Stages that a fork of another run does not train: they end with its first checkpoint, or before.

    Raises ValueError when no stage is left.
    """
    start = run.spec.start_from
    if start is None:
        return frozenset()
    names = [stage.name for stage in run.spec.stages]
    config = run_config(run, names[-1])
    past = frozenset(name for index, name in enumerate(names) if config.stage_steps(index).stop <= start.step)
    if len(past) == len(names):
        last = config.stage_steps(len(names) - 1).stop
        raise ValueError(
            f"startFrom.step {start.step} is not before the end of the last stage (step {last}): append a stage"
        )
    return past


def waiting_sentence(stage: str, ready: int, spec: SkyworkRunSpec) -> str:
    """How many nodes a stage has that waits for them."""
    return f"stage {stage}: {ready} of {spec.trainer.nodes.max} nodes are ready"


def target_tokens(config: RunConfig) -> int:
    """Tokens of all stages of a run, whole steps."""
    return config.stage_steps(len(config.stages) - 1).stop * config.global_batch_tokens


def stage_record(status: SkyworkRunStatus, stage: str) -> StageStatus | None:
    """What the status holds about a stage."""
    return next((record for record in status.stages if record.name == stage), None)


def with_stage(status: SkyworkRunStatus, record: StageStatus) -> SkyworkRunStatus:
    """The status with one stage's record replaced or appended."""
    others = [record if r.name == record.name else r for r in status.stages]
    if all(r.name != record.name for r in status.stages):
        others.append(record)
    return status.model_copy(update={"stages": others})


def with_progress(status: SkyworkRunStatus, words: AgentStatus, run: Run, stage: str) -> SkyworkRunStatus:
    """The status with what rank 0 reports."""
    progress = words.progress
    # Before it has restored a checkpoint the trainer knows no step, and 0 would look like everything were lost.
    if progress is None or words.generation < status.generation:
        return status
    if progress.step == 0 and progress.section in ("init", "restore"):
        return status
    config = run_config(run, run.spec.stages[-1].name)
    names = [s.name for s in run.spec.stages]
    steps = config.stage_steps(names.index(stage))
    total = config.stage_steps(len(names) - 1).stop
    tokens = progress.step * config.global_batch_tokens
    fields: dict[str, object] = {"step": progress.step, "tokens": tokens, "tokens_summary": short_quantity(tokens)}
    fields["progress"] = f"{100 * progress.step // total}%"
    if progress.train_loss is not None:
        fields["train_loss"] = f"{progress.train_loss:.4f}"
    if progress.learning_rate is not None:
        fields["learning_rate"] = f"{progress.learning_rate:.4g}"
    if progress.tokens_per_second is not None:
        fields["tokens_per_second"] = round(progress.tokens_per_second)
    if progress.mfu is not None:
        fields["model_flops_utilization"] = f"{progress.mfu:.3f}"
    if progress.validation:
        fields["validation_loss"] = losses.by_domain(progress.validation)
        mean, perplexity = losses.average(said.loss for said in progress.validation)
        fields |= {"val_loss": mean, "average_perplexity": perplexity}
    if progress.checkpoint:
        fields["last_checkpoint"] = Checkpoint(
            step=progress.checkpoint_step, uri=progress.checkpoint_uri, time=timestamp(progress.checkpoint_time)
        )
    record = stage_record(status, stage) or StageStatus(name=stage)
    done = min(max(progress.step - steps.start, 0), len(steps))
    record = record.model_copy(
        update={
            "steps": done,
            "tokens": min(done * config.global_batch_tokens, _budget(run, stage, config.global_batch_tokens)),
            "mixture": _mixture(progress),
            "validation_loss": _domains(progress) or record.validation_loss,
        }
    )
    status = with_epochs(status.model_copy(update=fields), run.spec, progress.source_epochs)
    return with_stage(status, record)


def warnings(words: AgentStatus, status: SkyworkRunStatus) -> str:
    """What the newest generation's rank 0 warns of; empty when nothing."""
    if words.progress is None or words.generation < status.generation:
        return ""
    return "; ".join(words.progress.warnings)


def corrupt(words: AgentStatus, status: SkyworkRunStatus) -> str | None:
    """What the newest generation says of checkpoints it passed over, empty when of none; None before it has looked."""
    progress = words.progress
    if progress is None or words.generation < status.generation or progress.section in ("init", "restore"):
        return None
    if not progress.corrupt_checkpoints:
        return ""
    return (
        f"{'; '.join(progress.corrupt_checkpoints)}. Training goes on from an older one. The files were left as they "
        "are; when they are mended, delete the note in quarantine/ beside the checkpoints to have them tried again"
    )


def reduced_micro_batch(words: AgentStatus, spec: SkyworkRunSpec) -> str:
    """What to say of a micro-batch that was made smaller than the spec asks for; empty while it was not."""
    wanted, used = spec.engine.micro_batch_sequences, words.progress.micro_batch_sequences if words.progress else 0
    if wanted == "Auto" or not 0 < used < wanted:
        return ""
    return (
        f"engine.microBatchSequences {wanted} ran out of memory: {used} are used, the global batch is the same. More "
        "need engine.activationCheckpointing or a higher engine.zeroStage"
    )


def _budget(run: Run, stage: str, batch: int) -> int:
    tokens = next(parse_quantity(s.tokens) for s in run.spec.stages if s.name == stage)
    return -(-tokens // batch) * batch


def _mixture(progress: Progress) -> list[SourceCount]:
    drawn = sum(progress.source_sequences.values())
    return [
        SourceCount(source=source, sequences=count, share=f"{count / drawn:.4f}")
        for source, count in sorted(progress.source_sequences.items())
        if drawn
    ]


def _domains(progress: Progress) -> list[StageDomain]:
    start = {v.domain: v.loss for v in progress.stage_start_validation}
    end = {v.domain: v.loss for v in progress.validation}
    return [
        StageDomain(
            domain=domain,
            start=f"{start[domain]:.4f}" if domain in start else None,
            end=f"{end[domain]:.4f}" if domain in end else None,
        )
        for domain in sorted(start | end)
    ]
