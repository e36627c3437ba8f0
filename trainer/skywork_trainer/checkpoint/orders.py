"""What a worker asks of the process that stores its checkpoints, and what that one answers; JSON lines, no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from skywork_trainer.checkpoint.history import History, Runs
from skywork_trainer.checkpoint.manifest import Manifest, Piece, RankFile
from skywork_trainer.config import Checkpoints


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", protected_namespaces=())


class Part(_Message):
    """One rank's share of a checkpoint, once it is stored."""

    file: RankFile
    pieces: tuple[Piece, ...]
    consumed: Runs
    substituted: dict[int, int]


class WriteFile(_Message):
    """Store the first `size` bytes behind the descriptor `fd` as a rank's file, and hash them."""

    do: Literal["write"] = "write"
    id: str
    name: str
    fd: int
    size: int
    block_bytes: int
    durable: bool
    """Whether it goes to the object store; otherwise to the node's disk only."""
    local_keep: int
    """Checkpoints of which the node keeps a file; 0 for none."""


class Commit(_Message):
    """Put the parts of all ranks together and make them a checkpoint."""

    do: Literal["commit"] = "commit"
    draft: Manifest
    """Complete but for files and pieces."""
    history: History
    """Complete but for what the ranks consumed."""
    curve: str = ""
    """What happened since the checkpoint before, as `skywork_trainer.curve` writes it; empty but on rank 0."""
    parts: tuple[Part, ...]
    durable: bool
    leads: bool
    """Whether this is rank 0, which alone writes to the object store; the others only note it on their node."""
    keep: Checkpoints


Order = Annotated[WriteFile | Commit, Field(discriminator="do")]
ORDER: TypeAdapter[WriteFile | Commit] = TypeAdapter(Order)


class Trouble(_Message):
    """Why an order was not carried out."""

    reason: str
    message: str
    retryable: bool = True
    superseded: bool = False


class Answer(_Message):
    """What became of the order."""

    sha256: tuple[str, ...] = ()
    """Of every block of a written file."""
    trouble: Trouble | None = None


def assembled(order: Commit) -> tuple[Manifest, History]:
    """Return the whole manifest and history."""
    manifest = order.draft.model_copy(
        update={
            "files": tuple(part.file for part in order.parts),
            "pieces": tuple(piece for part in order.parts for piece in part.pieces),
        }
    )
    history = order.history.model_copy(
        update={
            "ranks": tuple(part.consumed for part in order.parts),
            "substituted": {n: window for part in order.parts for n, window in part.substituted.items()},
        }
    )
    return manifest, history
