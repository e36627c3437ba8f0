"""What operator, agent and workers say to each other about one generation; imported by way of `config`.

Both sides may be of different versions, because an upgrade of the operator touches no pod: what one side does not know
of it passes over.
"""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Word(BaseModel):
    # A loss that is not a number must be told, and not make all of the words unreadable as a null would.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


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
    after: str = ""
    """Why the generation before this one ended; empty for a run's first."""
    validate_request: str = ""
    """Measure all domains once for each new value of this; rank 0 is told."""
    sent: float = 0.0
    """When the operator wrote it (its Unix seconds); 0 where words need no delivery."""
    repeated: int = 0
    """How often it has been written again because it was not heard."""


class AgentPhase(StrEnum):
    """What an agent is doing."""

    STANDBY = "Standby"
    TRAINING = "Training"
    FAILED = "Failed"
    DONE = "Done"
    LEFT = "Left"


class DomainLoss(_Word):
    """Validation of one domain at one step, on windows of text that never change."""

    domain: str
    loss: float
    """Mean negative log-likelihood per token of the run's tokenizer (nats)."""
    tokens: int
    """Tokens that were predicted."""
    step: int
    characters: int = 0
    """Characters of the text of those tokens; 0 where that is not known."""
    bytes: int = 0
    """Bytes of it in UTF-8."""
    reference_tokens: int = 0
    """Tokens that the reference tokenizer makes of it; 0 without one."""

    @property
    def nll(self) -> float:
        """Total negative log-likelihood (nats)."""
        return self.loss * self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """What a byte of the text costs; comparable between tokenizers."""
        return self.nll / self.bytes / math.log(2) if self.bytes else None

    @property
    def reference_loss(self) -> float | None:
        """Nats per token of the reference tokenizer, as the Skywork report compares models (section 4.3)."""
        return self.nll / self.reference_tokens if self.reference_tokens else None


class CurvePoint(_Word):
    """One validation, as much of it as diagnosis and sparklines need."""

    step: int
    stage: str
    losses: dict[str, float]
    """Nats per token, by domain."""
    train_loss: float | None = None
    """Mean training loss of the steps since the point before."""
    stage_start: bool = False
    """Measured before the stage's first step."""


class Diagnosis(_Word):
    """What one detector says of the run now."""

    type: str
    """Condition of the run: DomainsDiverging, Forgetting, Plateau, GapGrowing, LossSpiking, DataStarved,
    ThroughputLow, ValidationIncomplete."""
    found: bool
    reason: str
    """CamelCase word for machines."""
    message: str
    """Evidence, and what to do about it."""


class Spent(StrEnum):
    """Where a run's time goes; together they are all of it."""

    TRAIN = "train"
    INITIALIZE = "initialize"
    RESTORE = "restore"
    CHECKPOINT = "checkpoint"
    """Standing still for a save."""
    DATA_WAIT = "dataWait"
    VALIDATE = "validate"
    IDLE = "idle"
    """Nothing of the run works: it waits for nodes, or a failure is not yet noticed."""
    LOST = "lost"
    """Steps that were trained and had to be trained again."""


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
    grad_norm: float | None = None
    mfu: float | None = None
    """Model FLOPs as a share of the devices' peak, where that is known."""
    spent: dict[str, float] = {}
    """Seconds by Spent since this generation's worker began: what it does itself, so neither idle nor lost."""
    validation: tuple[DomainLoss, ...] = ()
    """Newest per domain."""
    stage_start_validation: tuple[DomainLoss, ...] = ()
    """As measured before the stage's first step."""
    validation_curve: tuple[CurvePoint, ...] = ()
    """The run's validations, thinned out; the newest is last."""
    validate_request: str = ""
    """The newest of Membership's that was measured."""
    diagnoses: tuple[Diagnosis, ...] = ()
    """What every detector says that has seen enough."""
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
    heard: int | None = None
    """Newest generation that the operator's word was read of; None from agents that do not tell."""
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
    after: str = ""
    """As in Membership."""
