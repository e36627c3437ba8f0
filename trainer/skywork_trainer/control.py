"""What operator, agent and workers say to each other about one generation; imported by way of `config`.

Both sides may be of different versions, because an upgrade of the operator touches no pod: what one side does not know
of it passes over.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Role(StrEnum):
    """What the operator asks of one pod."""

    STANDBY = "standby"
    TRAIN = "train"
    LEAVE = "leave"
    DONE = "done"
    """The stage is trained: end with success, there is nothing left to do."""


class Membership(_Word):
    """The operator's word to one pod: its place in the world of one generation (annotation skywork.dev/membership)."""

    generation: Annotated[int, Field(ge=0)]
    role: Role
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the node; a worker's rank is node rank x workers per node + local rank."""
    nodes: Annotated[int, Field(ge=0)] = 0
    master: str = ""
    """Pod IP and port of node rank 0: no DNS takes part."""
    drain: bool = False
    """The generation before this one is healthy: let its workers save first (SIGTERM, then wait)."""
    before_step: int | None = None
    """Restore a checkpoint of an earlier step than this one: training fails right behind the newest."""
    check: bool = False
    """Look for a broken node before training."""


class AgentPhase(StrEnum):
    """What an agent is doing."""

    STANDBY = "Standby"
    TRAINING = "Training"
    FAILED = "Failed"
    DONE = "Done"
    LEFT = "Left"


class DomainLoss(_Word):
    """Validation of one domain at one step: mean negative log-likelihood per token (nats)."""

    domain: str
    loss: float
    tokens: int
    step: int


PEER_LOST = "PeerLost"
"""Reason of a worker that failed only because another one had."""


NODE_CHECK_FAILED = "NodeCheckFailed"
"""Reason of a worker whose node was found to be broken before it trained."""
HANG = "Hang"
"""Reason of a worker that showed no progress for longer than its section may take."""


class Section(StrEnum):
    """What a worker is doing; each has a limit to how long it may go without a sign of progress."""

    INIT = "init"
    RESTORE = "restore"
    FIRST_STEP = "first-step"
    """The first step of a generation, with whatever is compiled for it."""
    STEP = "step"
    VALIDATE = "validate"
    SAVE = "save"


class Failure(_Word):
    """Root cause of a worker's end, as the worker wrote it or as its exit status tells."""

    time: float
    """Unix seconds; the earliest of a generation is the cause, the others followed."""
    rank: int
    reason: str
    """CamelCase: AppError, Killed, Hang, PeerLost, StorageUnreachable, TokenizerMismatch, CheckpointMismatch, ..."""
    message: str
    retryable: bool = True
    step: int | None = None
    """Step that was being trained; None where that is not known."""
    waits: bool = False
    """The worker stood in a collective: it may only have waited for another one's sake."""

    @property
    def order(self) -> tuple[bool, bool, float]:
        """Sort key of several failures of one generation: the first is the likeliest cause.

        A worker that lost its peer only echoes what ended the peer, and may well say so first.
        """
        return self.reason == PEER_LOST, self.waits, self.time


class Progress(_Word):
    """Where training stands, as the worker of rank 0 writes it after every step."""

    time: float = 0.0
    section: str = "init"
    """One of Section."""
    initialized_time: float = 0.0
    """When this generation had joined and opened its data; 0 until then."""
    restored_time: float = 0.0
    """When it had read its checkpoint; 0 until then."""
    step: int = 0
    """Steps of the run that are done."""
    first_step: int = 0
    """Step this generation resumed from."""
    first_step_time: float = 0.0
    """When this generation finished its first step; 0 until then."""
    tokens: int = 0
    train_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    validation: tuple[DomainLoss, ...] = ()
    """Newest per domain."""
    stage_start_validation: tuple[DomainLoss, ...] = ()
    """As measured before the stage's first step."""
    source_sequences: dict[str, int] = {}
    """Sequences of this stage drawn from each source so far."""
    source_epochs: dict[str, float] = {}
    """How often the run has read each source so far."""
    warnings: tuple[str, ...] = ()
    """What a person should know about the stage's data."""
    checkpoint: str = ""
    checkpoint_step: int = 0
    checkpoint_uri: str = ""
    checkpoint_time: float = 0.0
    micro_batch_sequences: int = 0
    """Of one forward pass; fewer than configured where that many ran out of memory."""
    resumed_from: str = ""
    """Checkpoint this generation started from; empty for a fresh start."""
    corrupt_checkpoints: tuple[str, ...] = ()
    """Checkpoints that were passed over because they cannot be read as they were written: id and reason of each."""


class AgentStatus(_Word):
    """Body of GET /status, and of the pod's termination message."""

    phase: AgentPhase
    generation: int = 0
    rank: int = -1
    workers: tuple[int, ...] = ()
    """Process ids of the live workers, as seen inside the pod."""
    read_time: float = 0.0
    """When the agent read the membership of `generation`."""
    start_time: float = 0.0
    """When its workers ran; 0 until then."""
    forward_seconds: float = 0.0
    """What the forward passes of a step take on its slowest worker, lately; 0 while that is not known."""
    failure: Failure | None = None
    progress: Progress | None = None
    """Only from the node that holds rank 0."""


class Place(_Word):
    """One worker process's place in the world of one generation, and the folder where it reports to its agent.

    The worker of rank 0 keeps `progress.json` (Progress) and `metrics.prom` (Prometheus text) in `state_dir`; any
    worker that fails writes `failure-<local_rank>.json` (Failure) there before it exits. All by atomic rename. Every
    worker keeps `heartbeat-<local_rank>` there, see `heartbeat`.
    """

    generation: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int
    state_dir: Path
    cache_dir: Path
    before_step: int | None = None
    """As in Membership."""
    check: bool = False
    """As in Membership."""
