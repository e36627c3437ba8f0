"""The commit record of a checkpoint, and which checkpoints there are."""

import json
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.bounds import MOST_MANIFEST_BYTES, check_manifest, check_text
from skywork_trainer.config import CurvePoint, DomainLoss, Model
from skywork_trainer.storage import StorageError, Store

FORMAT = 1
ID = re.compile(r"\d{10,}-\d{6,}-\d{12,}")
_MANIFEST = re.compile(r"^checkpoints/(\d{10,}-\d{6,}-\d{12,})/manifest\.json$")


class _Frozen(BaseModel):
    # Readers of an older release must not choke on a field that a newer one added.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class RankFile(_Frozen):
    """One rank's safetensors file, hashed in blocks so that a partial read can be verified."""

    name: str
    size: int
    block_bytes: int
    sha256: Annotated[tuple[str, ...], FailFast()]
    """Of every block of `block_bytes` from the file's start; the last may be short."""


class Piece(_Frozen):
    """Elements [start, start + length) of one array of one flattened parameter, fp32, at `offset` of a file."""

    name: str
    kind: str
    start: int
    length: int
    file: int
    offset: int
    """Bytes from the start of the file, its header included."""


class Counters(_Frozen):
    """What status and metrics go on from after a restart."""

    train_loss: float | None = None
    validation: tuple[DomainLoss, ...] = ()
    stage_start_validation: tuple[DomainLoss, ...] = ()
    source_sequences: dict[str, int] = {}
    """Of the stage `Manifest.stage`."""
    generations: int = 1
    """Generations that saved something in this chain."""
    trained_seconds: float = 0.0
    """Time that this chain's generations have trained for."""
    totals: dict[str, float] = {}
    """What metrics that only grow have come to, by name and label."""
    validation_curve: tuple[CurvePoint, ...] = ()
    """The run's validations, thinned out."""
    validate_request: str = ""
    """The newest request for a validation that was met."""
    initial_weights_uri: str = ""
    """Where the weights lay that the run began with; empty where they were drawn."""
    forked_from: str = ""
    """Checkpoint of another run that the run began with, with the folder it lay in; empty for most."""
    forked_step: int = 0
    """Its step: what this run's history begins behind."""


class Manifest(_Frozen):
    """Everything a reader needs to know; its presence is what makes the files a checkpoint."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    id: str
    parent: str
    """Id of the checkpoint that training resumed from or saved before this one; empty for the first."""
    created: float
    generation: int
    stage: str
    step: int
    tokens: int
    optimizer_step: int
    world: int
    zero_stage: int
    model: Model
    model_hash: str
    tokenizer_sha256: str
    sequence_length: int
    global_batch_sequences: int
    fingerprints: dict[str, str]
    past_hash: str
    """Identity of all that decided which sequences the steps so far trained."""
    seed: int
    counters: Counters
    versions: dict[str, str]
    # The first wrong one ends it: a list of a million faults would take far more memory than the text.
    files: Annotated[tuple[RankFile, ...], FailFast()]
    pieces: Annotated[tuple[Piece, ...], FailFast()]


def checkpoint_id(*, incarnation: int, generation: int, step: int) -> str:
    """Return the name under which a generation saves a step; names sort by incarnation, generation, step."""
    return f"{incarnation:010d}-{generation:06d}-{step:012d}"


def parse_id(identity: str) -> tuple[tuple[int, int], int]:
    """Return incarnation and generation, and the step, of a checkpoint's id."""
    incarnation, generation, step = identity.split("-")
    return (int(incarnation), int(generation)), int(step)


def prefix(identity: str) -> str:
    """Return the key prefix of a checkpoint's objects."""
    return f"checkpoints/{identity}/"


def manifest_key(identity: str) -> str:
    """Return the key of a checkpoint's commit record."""
    return prefix(identity) + "manifest.json"


def committed(store: Store) -> list[str]:
    """Return the ids of all committed checkpoints, oldest first."""
    return sorted(match[1] for key in store.list("checkpoints/") if (match := _MANIFEST.match(key)))


def read_manifest(store: Store, identity: str) -> Manifest:
    """Return one manifest; CheckpointCorrupt if it is gone or not one, StorageError if the store fails."""
    try:
        text = store.get_range(manifest_key(identity), 0, MOST_MANIFEST_BYTES + 1)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        raise CheckpointCorrupt(f"manifest of {identity} is gone") from error
    return parse_manifest(identity, text)


def parse_manifest(identity: str, text: bytes) -> Manifest:
    """Return the manifest that the text says; CheckpointCorrupt if none, or one that nobody can have written."""
    check_text(identity, text)
    try:
        # Not model_validate_json: each of its errors would hold a copy of all the text said.
        manifest = Manifest.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise CheckpointCorrupt(f"manifest of {identity} cannot be read: {str(error)[:200]}") from error
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its text"
        raise CheckpointCorrupt(f"manifest of {identity} cannot be read: {where}: {first['msg']}") from error
    check_manifest(manifest, identity)
    return manifest
