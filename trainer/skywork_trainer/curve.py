"""What a run's curves consist of: one JSON line a record, in parts that lie beside the checkpoints.

curves/<checkpoint id>.jsonl holds what happened between the checkpoint `parent` and this one; its first line is a Part.
Reading from the newest checkpoint back by `parent` gives the run as it counts: steps that a rollback or a crash took
back are in no part of that chain.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from skywork_trainer.control import DomainLoss


class _Record(BaseModel):
    # Readers of an older release must not choke on a field that a newer one added.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class Part(_Record):
    """First line of a part: steps [first_step, last_step) of the run."""

    kind: Literal["part"] = "part"
    version: Literal[1] = 1
    id: str
    parent: str
    """Id of the checkpoint before; empty for a run's first."""
    first_step: int
    last_step: int
    global_batch_tokens: int
    run: str
    forked_from: str = ""
    """URI of the checkpoint of another run that this one began with; only where `parent` is empty."""


class StepRecord(_Record):
    """One step that is done."""

    kind: Literal["step"] = "step"
    step: int
    """Steps of the run that are done with this one."""
    stage: str
    time: float
    """Unix seconds at its end."""
    loss: float
    """Nats per token; not a number where the step was left out."""
    rate: float
    norm: float
    """Before clipping; not a number where the step changed nothing."""
    seconds: float
    """Since the end of the step before."""
    wait_seconds: float = 0.0
    """Of those, waited for data by rank 0."""


class ValidationRecord(_Record):
    """One validation."""

    kind: Literal["validation"] = "validation"
    step: int
    stage: str
    time: float
    seconds: float
    stage_start: bool = False
    """Measured before the stage's first step."""
    domains: tuple[DomainLoss, ...]


class GenerationRecord(_Record):
    """A generation has restored and goes on."""

    kind: Literal["generation"] = "generation"
    generation: int
    step: int
    """Step it goes on behind."""
    stage: str
    time: float
    world: int
    """Ranks."""
    after: str = ""
    """Why the generation before it ended."""
    resumed_from: str = ""


class TimeRecord(_Record):
    """Where the time of a generation has gone, as of the end of this part; cumulative within the generation."""

    kind: Literal["time"] = "time"
    generation: int
    time: float
    spent: dict[str, float]
    """Seconds by control.Spent."""


class MixtureRecord(_Record):
    """What a stage has drawn, as of the end of this part."""

    kind: Literal["mixture"] = "mixture"
    step: int
    stage: str
    sequences: dict[str, int]
    """By source, since the stage's first step."""


class EventRecord(_Record):
    """Something that a person looks for on a curve: a spike, a rollback, a micro-batch made smaller."""

    kind: Literal["event"] = "event"
    step: int
    time: float
    reason: str
    message: str


Record = Part | StepRecord | ValidationRecord | GenerationRecord | TimeRecord | MixtureRecord | EventRecord
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
_KINDS = frozenset(("part", "step", "validation", "generation", "time", "mixture", "event"))


def curve_key(identity: str) -> str:
    """Return the key of the part that ends in a checkpoint."""
    return f"curves/{identity}.jsonl"


def encode(records: Iterable[Record]) -> bytes:
    """Return the records as JSON lines."""
    return "".join(record.model_dump_json() + "\n" for record in records).encode()


def decode(content: bytes) -> Iterator[Record]:
    """Return the records of a part; kinds that a newer release wrote are passed over.

    Raises ValueError naming the line that is no record.
    """
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or value.get("kind") not in _KINDS:
                continue
            yield _RECORD.validate_python(value)
        except (ValueError, ValidationError) as error:
            raise ValueError(f"line {number} is no record of a curve: {str(error)[:200]}") from error
