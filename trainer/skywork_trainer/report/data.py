"""A report as plain data: strict JSON, what is not a number is null. Pure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from skywork_trainer.curve import GenerationRecord, TimeRecord
from skywork_trainer.curves.run import FLOATS
from skywork_trainer.report import Reported


def as_data(runs: Sequence[Reported]) -> dict[str, Any]:
    """Return all runs with every step and every record."""
    return {"runs": [_run(run) for run in runs]}


def _run(run: Reported) -> dict[str, Any]:
    curve, summary = run.curve, run.summary
    own = [one for one in curve.told if one.uri == curve.uri]
    told: dict[str, Any] = {
        "label": run.label,
        "run": curve.run,
        "uri": curve.uri,
        "checkpoint": curve.checkpoint,
        "step": curve.step,
        "tokens": curve.tokens,
        "globalBatchTokens": curve.global_batch_tokens,
        "notes": list(curve.notes),
        "summary": {
            "stage": summary.stage,
            "trainLoss": summary.train_loss,
            "tokensPerSecond": summary.tokens_per_second,
            "averageLoss": summary.average_loss,
            "averagePerplexity": summary.average_perplexity,
            "goodput": summary.accounts.goodput,
            "wallSeconds": summary.accounts.wall_seconds,
            "seconds": summary.accounts.seconds,
            "faults": summary.faults,
            "rollbacks": summary.rollbacks,
            "domains": [
                {
                    "domain": one.domain,
                    "step": one.step,
                    "loss": one.loss,
                    "perplexity": one.perplexity,
                    "stageStartLoss": one.stage_start,
                    "change": one.change,
                    "bitsPerByte": one.bits_per_byte,
                    "referenceLoss": one.reference_loss,
                }
                for one in summary.domains
            ],
        },
        "stages": [dataclasses.asdict(stage) for stage in summary.stages],
        "forks": [fork._asdict() for fork in curve.forks],
        "steps": {
            "step": curve.steps.step.tolist(),
            "stage": [curve.stages[at].name for at in _stage_of(run)],
            **{name: getattr(curve.steps, name).tolist() for name in FLOATS},
        },
        "validations": [
            record.model_dump(exclude={"kind", "domains"})
            | {
                "domains": [
                    one.model_dump(exclude={"step"})
                    | {"bits_per_byte": one.bits_per_byte, "reference_loss": one.reference_loss}
                    for one in record.domains
                ]
            }
            for record in curve.validations
        ],
        "mixtures": [record.model_dump(exclude={"kind"}) for record in curve.mixtures],
        "generations": [_told(one.record, one.counted) for one in own if isinstance(one.record, GenerationRecord)],
        "times": [_told(one.record, one.counted) for one in own if isinstance(one.record, TimeRecord)],
        "events": [record.model_dump(exclude={"kind"}) for record in curve.events],
        "rollbacks": [rollback.model_dump(mode="json") for rollback in curve.rollbacks],
    }
    if run.status is not None:
        told["status"] = run.status
    plain: dict[str, Any] = _strict(told)
    return plain


def _stage_of(run: Reported) -> list[int]:
    return [at for at, span in enumerate(run.curve.stages) for _ in range(_rows(run, span.first_step, span.last_step))]


def _rows(run: Reported, first_step: int, last_step: int) -> int:
    step = run.curve.steps.step
    return int(((step > first_step) & (step <= last_step)).sum())


def _told(record: BaseModel, counted: bool) -> dict[str, Any]:
    return record.model_dump(exclude={"kind"}) | {"counted": counted}


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return value
