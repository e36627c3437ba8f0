"""Typed models of a SkyworkRun's status; fractions are decimal strings, as the API conventions ask."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.types import StringConstraints

from skywork_operator.api.fields import Base, atomic, list_map

# Bounded, so that the rules which compare the spec with the status stay within the API server's cost budget.
Known = Annotated[str, StringConstraints(max_length=63)]
Phase = Literal["Pending", "Scanning", "Writing", "Prepared"]


class StatusBase(Base):
    """Like the spec's base, but open to fields that a newer operator wrote."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )


class Condition(StatusBase):
    """One observation of the run, after the Kubernetes API conventions."""

    type: str
    """Accepted, Prepared, Running, Suspended, DataRepeated, CheckpointCorrupt, CheckpointStale, MicroBatchReduced,
    Straggling, Succeeded, Failed; and what the trainer finds: DomainsDiverging, Forgetting, Plateau, GapGrowing,
    LossSpiking, DataStarved, ThroughputLow, ValidationIncomplete."""
    status: str
    """True, False or Unknown."""
    reason: str
    """CamelCase word for machines."""
    message: str = ""
    """Sentence for people: what was seen and what to do."""
    observed_generation: int = 0
    """Generation of the spec this was said about."""
    last_transition_time: str
    """When `status` last changed."""


class DomainValidation(StatusBase):
    """Newest validation of one domain."""

    domain: str
    """Name of the domain."""
    loss: str
    """Mean negative log-likelihood per token, nats."""
    bits_per_byte: str | None = None
    """What a byte of the text costs; comparable between tokenizers. Absent where the bytes are not known."""
    reference_loss: str | None = None
    """Nats per token of validation.referenceTokenizer."""
    step: int
    """Step it was measured at."""


class StageDomain(StatusBase):
    """How a stage moved one domain."""

    domain: str
    """Name of the domain."""
    start: str | None = None
    """Loss before the stage's first step."""
    end: str | None = None
    """Newest loss in the stage."""


class SourceCount(StatusBase):
    """Realised draws of one source."""

    source: str
    """Name of the source."""
    sequences: int
    """Sequences of this stage drawn from it."""
    share: str
    """Its part of the stage's sequences so far."""


class SourceStatus(StatusBase):
    """What became of one source or held-out domain."""

    name: Known
    """Name of the source or domain."""
    phase: Phase | None = None
    """How far its preparation is; absent when it needs none."""
    epochs: str | None = None
    """How often the run has read it so far."""


class StageStatus(StatusBase):
    """What became of one stage."""

    name: Known
    """Name of the stage."""
    start_time: str | None = None
    """When its Job was made."""
    completion_time: str | None = None
    """When its last step was committed."""
    steps: int = 0
    """Steps of this stage that are done."""
    tokens: int = 0
    """Tokens of this stage that are trained."""
    mixture: Annotated[list[SourceCount], Field(json_schema_extra=list_map("source"))] = []
    """Realised mixture."""
    validation_loss: Annotated[list[StageDomain], Field(json_schema_extra=list_map("domain"))] = []
    """Loss of each domain at the start of the stage and now."""


class NodeCounts(StatusBase):
    """Nodes of the run."""

    summary: str = ""
    """Training and desired, for people: 3/3."""
    desired: int = 0
    """Nodes asked for."""
    ready: int = 0
    """Pods whose agent answers."""
    training: int = 0
    """Nodes of the current world."""


class ReasonCount(StatusBase):
    """Restarts of one kind."""

    reason: str
    """Cause, for example Killed or PodLost."""
    count: int
    """How often."""


class LastFailure(StatusBase):
    """How the newest generation that failed did."""

    reason: str
    """Cause, as in byReason."""
    message: str
    """The first cause, in the worker's or the cluster's words."""
    time: str
    """When it was counted."""
    step: int = 0
    """Step that was being trained."""
    resumed_step: int = 0
    """Step of the checkpoint that the generation had started from."""
    repeats: int = 1
    """How often the same cause came at the same step, in a row."""


class Restarts(StatusBase):
    """Generations that ended before the stage did."""

    total: int = 0
    """All of them."""
    without_progress: int = 0
    """Failures in a row since the last new checkpoint, within the window; the budget counts these."""
    checkpoint_step: int = 0
    """Step of the newest checkpoint when the last one was counted."""
    recent: Annotated[list[str], Field(max_length=1001, json_schema_extra=atomic())] = []
    """When the failures that count against the budget were."""
    waiting: int = 0
    """Failures in a row that only waiting can cure, such as storage that cannot be reached."""
    last: LastFailure | None = None
    """The newest."""
    before_step: int | None = None
    """Set while checkpoints of this step and later ones are passed over, because training fails right behind them."""
    by_reason: Annotated[list[ReasonCount], Field(json_schema_extra=list_map("reason"))] = []
    """Split by cause."""


class Recovery(StatusBase):
    """Seconds from the end of one generation to the first step of the next, part by part."""

    generation: int
    """The generation that trains again."""
    reason: str
    """What ended the one before."""
    failed_time: str
    """When that happened, with fractions."""
    detected: str | None = None
    """Until the operator knew."""
    decided: str | None = None
    """Until it had told the pods: waiting for nodes and pauses are in here."""
    delivered: str | None = None
    """Until the slowest agent had read that."""
    started: str | None = None
    """Until its workers ran."""
    initialized: str | None = None
    """Until they had joined and opened the data."""
    restored: str | None = None
    """Until the checkpoint was read."""
    first_step: str | None = None
    """Until the first step was done."""
    total: str | None = None
    """All of it."""


class NodeStrikes(StatusBase):
    """What a node is blamed for."""

    node: str
    """Name of the node."""
    strikes: int
    """Failures that count."""
    reason: str
    """The newest one's cause."""
    time: str
    """When that was."""
    avoided: bool = False
    """Whether pods stay away from it."""


class Straggler(StatusBase):
    """A node that computes more slowly than the others, which wait for it at every step."""

    node: str
    """Name of the node."""
    pod: str
    """The run's pod there."""
    slowdown: str
    """How many times as long as the median of all nodes its forward passes take."""
    time: str
    """Since when."""


class Checkpoint(StatusBase):
    """Newest committed checkpoint."""

    step: int
    """Step it holds."""
    uri: str
    """Where it lies."""
    time: str
    """When it was committed."""


class StateSeconds(StatusBase):
    """Time in one state."""

    state: Known
    """One of status.time."""
    seconds: str
    """How long."""


class Heard(StatusBase):
    """How far a generation's own account of its time is counted."""

    generation: int = 0
    """The newest generation that has said where its time went."""
    spent: Annotated[list[StateSeconds], Field(max_length=8, json_schema_extra=list_map("state"))] = []
    """Its seconds by state, as they were counted last."""
    resumed: bool = False
    """Whether it has restored a checkpoint, so that what it trains again is known."""
    step: int = 0
    """Step up to which the run is trained."""
    seconds_per_step: str = "0"
    """Mean training time of a step of the newest generation that did any."""
    owed: str = "0"
    """Seconds of training that were taken back and are still to be spent a second time."""


class TimeSpent(StatusBase):
    """Where the time since startTime went: seconds by state. Together they are all of it, as of the newest change."""

    train: str = "0"
    """Forward, backward and optimizer steps that count."""
    initialize: str = "0"
    """Workers started, joined their peers and opened the data."""
    restore: str = "0"
    """A checkpoint was read."""
    checkpoint: str = "0"
    """Training stood still for a save."""
    data_wait: str = "0"
    """Steps waited for their sequences."""
    validate_: Annotated[str, Field(alias="validate")] = "0"
    """Held-out domains were measured."""
    idle: str = "0"
    """Nothing trained: waiting for nodes or a queue, suspended, or a failure not yet noticed."""
    lost: str = "0"
    """Steps that had been trained before were trained again."""
    heard: Heard = Heard()
    """What the next words of a generation are counted from."""


class RequestedValidation(StatusBase):
    """The newest validation that was asked for by the annotation skywork.dev/validate."""

    request: str
    """Value of the annotation."""
    step: int
    """Step it was measured at."""
    time: str
    """When that was known."""


class SkyworkRunStatus(StatusBase):
    """What the operator last saw."""

    observed_generation: int = 0
    """Generation of the spec that was acted on."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=list_map("type"))] = []
    """Accepted, Prepared, Running, Suspended, DataRepeated, CheckpointCorrupt, CheckpointStale, MicroBatchReduced,
    Straggling, Succeeded, Failed; and what the trainer finds: DomainsDiverging, Forgetting, Plateau, GapGrowing,
    LossSpiking, DataStarved, ThroughputLow, ValidationIncomplete."""
    state: str = ""
    """One word for people; machines read the conditions."""
    stage: str = ""
    """Stage being trained."""
    step: int = 0
    """Steps of the run that are done."""
    tokens: int = 0
    """Tokens trained in all stages."""
    tokens_summary: str = ""
    """The same for people: 1.25T."""
    target_tokens: int = 0
    """Tokens of all stages, whole steps."""
    progress: str = ""
    """Part of all stages' tokens that is trained."""
    eta: str | None = None
    """How long training will still take, for people: 3d4h."""
    estimated_completion: str | None = None
    """When training will end at the pace of the newest generation; moves only when the estimate has clearly changed."""
    train_loss: str | None = None
    """Loss of the newest step, nats per token."""
    learning_rate: str | None = None
    """Rate of the newest step."""
    tokens_per_second: int = 0
    """Newest throughput over all nodes."""
    model_flops_utilization: str | None = None
    """Model FLOPs of the newest step as a share of the devices' peak, where that is known."""
    goodput: str | None = None
    """Part of the time since startTime in which steps were trained that count."""
    time: TimeSpent | None = None
    """Where the time since startTime went."""
    val_loss: str | None = None
    """Mean of all domains' newest losses, each domain counting alike; nats per token."""
    average_perplexity: str | None = None
    """exp of that: of the mean of the domains' log perplexities."""
    validation_loss: Annotated[list[DomainValidation], Field(json_schema_extra=list_map("domain"))] = []
    """Newest loss of every held-out domain."""
    requested_validation: RequestedValidation | None = None
    """The newest validation that was asked for, once it is done."""
    nodes: NodeCounts = NodeCounts()
    """Nodes asked for, ready and training."""
    generation: int = 0
    """Newest generation: a world of fixed membership."""
    generation_start_time: str | None = None
    """When it was formed."""
    generation_end: str = ""
    """Why the newest generation that is over ended: a reason of restarts, or Resized, Suspended, StageCompleted,
    WaitingForQuota, JobSuspended."""
    first_step_time: str | None = None
    """When it finished its first step."""
    restarts: Restarts = Restarts()
    """Generations that ended early."""
    recovery: Recovery | None = None
    """How the newest generation that followed another came about."""
    node_strikes: Annotated[list[NodeStrikes], Field(max_length=64, json_schema_extra=list_map("node"))] = []
    """Nodes that failures were blamed on, and those that are avoided."""
    stragglers: Annotated[list[Straggler], Field(max_length=16, json_schema_extra=list_map("node"))] = []
    """Nodes that are slower than the others now; told of once that has lasted a minute."""
    start_time: str | None = None
    """When the first stage started."""
    completion_time: str | None = None
    """When the run succeeded or failed."""
    selector: str = ""
    """Label selector of the pods, for the scale subresource."""
    last_checkpoint: Checkpoint | None = None
    """Newest committed checkpoint."""
    checkpoint_interval_seconds: int | None = None
    """Time between two that checkpoints.every asks for; absent where it is not a time."""
    sources: Annotated[list[SourceStatus], Field(max_length=128, json_schema_extra=list_map("name"))] = []
    """Sources and domains that are prepared by this run, and sources that were read."""
    stages: Annotated[list[StageStatus], Field(max_length=32, json_schema_extra=list_map("name"))] = []
    """Every stage that has begun."""
