"""The micro-batch that fits in memory: one that did not is remembered beside the checkpoints, and halved.

A rank that runs out in the middle of a backward pass cannot finish the step: its peers wait in collectives that it will
never join. So it ends the generation, and the next one, seconds later, trains the same step with half the micro-batch
and twice the accumulation; the global batch, the samples and the mathematics stay as they are.
"""

import hashlib
import json
import logging

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.storage import StorageError, Store

_log = logging.getLogger(__name__)


class OutOfMemory(Exception):
    """A rank ran out of device memory; retryable while there is a smaller micro-batch to try."""

    reason = "OutOfMemory"

    def __init__(self, micro_batch: int, cause: str) -> None:
        self.retryable = micro_batch > 1
        advice = (
            f"the next generation tries {micro_batch // 2}"
            if self.retryable
            else "use engine.activationCheckpointing, a higher engine.zeroStage, or more GPUs"
        )
        self.message = f"micro-batches of {micro_batch} sequences do not fit in memory; {advice} ({cause})"
        super().__init__(self.message)


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    too_large: int = Field(ge=2)
    """Sequences of a micro-batch that did not fit."""


def fitting_micro_batch(store: Store, config: RunConfig, device_name: str, world: World) -> int:
    """Return the configured micro-batch, or half of the smallest known not to fit on such a device. Collective."""
    known = b""
    if world.rank == 0:
        try:
            known = store.get(_key(config, device_name))
        except StorageError as error:
            if error.reason != "NotFound":
                raise
    known = world.broadcast_bytes(known)
    configured = config.engine.micro_batch_sequences
    if not known:
        return configured
    try:
        note = _Note.model_validate_json(known)
    except ValidationError as error:
        _log.warning("%s/%s is passed over: %s", store.uri, _key(config, device_name), error)
        return configured
    return min(configured, note.too_large // 2)


def note_out_of_memory(store: Store, config: RunConfig, device_name: str) -> None:
    """Remember that the micro-batch of `config` did not fit; any rank may say so, and more than one."""
    size = config.engine.micro_batch_sequences
    if size > 1:
        store.put(_key(config, device_name), _Note(too_large=size).model_dump_json().encode())


def _key(config: RunConfig, device_name: str) -> str:
    engine = config.engine.model_dump(mode="json", exclude={"micro_batch_sequences"})
    told = [config.model_hash, config.sequence_length, config.attention, engine, device_name]
    return f"memory/{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]}.json"
