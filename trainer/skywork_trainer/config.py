"""What the operator renders for the trainer: the whole run's plan, and which stage of it to train.

The only trainer module that the operator imports, so it imports no torch. Every value is checked here, once;
code behind it trusts what it is given.

Sequences and steps are numbered over the *whole run*, not per stage: step b trains exactly the sequences
[b * B, (b + 1) * B) for any world size, and a later stage goes on where the one before it ended.
"""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skywork_trainer.control import HANG as HANG
from skywork_trainer.control import NODE_CHECK_FAILED as NODE_CHECK_FAILED
from skywork_trainer.control import PEER_LOST as PEER_LOST
from skywork_trainer.control import AgentPhase as AgentPhase
from skywork_trainer.control import AgentStatus as AgentStatus
from skywork_trainer.control import CurvePoint as CurvePoint
from skywork_trainer.control import Diagnosis as Diagnosis
from skywork_trainer.control import DomainLoss as DomainLoss
from skywork_trainer.control import Failure as Failure
from skywork_trainer.control import Membership as Membership
from skywork_trainer.control import Place as Place
from skywork_trainer.control import Progress as Progress
from skywork_trainer.control import Role as Role
from skywork_trainer.control import Section as Section
from skywork_trainer.control import Spent as Spent
from skywork_trainer.preparation import SCRIPTS as SCRIPTS
from skywork_trainer.preparation import Decontamination as Decontamination
from skywork_trainer.preparation import Filters as Filters
from skywork_trainer.preparation import NearDuplicates as NearDuplicates
from skywork_trainer.preparation import Preparation as Preparation
from skywork_trainer.shares import MixtureEntry as MixtureEntry
from skywork_trainer.shares import Point as Point
from skywork_trainer.shares import Shape as Shape
from skywork_trainer.shares import Share as Share
from skywork_trainer.shares import pieces

CONFIG_PATH = "/etc/skywork/config/run.json"
MEMBERSHIP_PATH = "/etc/skywork/pod/membership"
MEMBERSHIP_ANNOTATION = "skywork.dev/membership"
AGENT_PORT = 9400
OVER_PATH = "/over"
"""With ?generation=N the agent answers once that generation trains there no more (200), or after a while (204)."""
OVER_HOLD_SECONDS = 25.0

EXIT_DONE = 0
"""The stage is trained to its last step and its final checkpoint is committed."""
EXIT_CONFIG = 64
"""The configuration or the world it names is wrong: a retry cannot help."""
EXIT_LEFT = 75
"""Asked to leave; the state is saved."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Frozen):
    """Geometry of the decoder: RMSNorm pre-norm, RoPE, SwiGLU, grouped-query attention, untied head."""

    layers: Annotated[int, Field(ge=1)]
    hidden: Annotated[int, Field(ge=8)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    ffn: Annotated[int, Field(ge=8)]
    vocab_size: Annotated[int, Field(ge=256)]
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    init_std: Annotated[float, Field(gt=0)] = 0.01

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"model.hidden must be heads x an even head dimension, got {self.hidden} / {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.kvHeads must divide model.heads, got {self.kv_heads} and {self.heads}")
        return self


PRESETS: dict[str, Model] = {
    "tiny": Model(layers=4, hidden=128, heads=4, kv_heads=4, ffn=352, vocab_size=4096, init_std=0.02),
    # Skywork-13B report, Table 3, and the released config.json (init std, epsilon, theta).
    "skywork-13b": Model(layers=52, hidden=4608, heads=36, kv_heads=36, ffn=12288, vocab_size=65536),
}


class Schedule(StrEnum):
    """How the learning rate moves inside a stage."""

    COSINE = "Cosine"
    CONSTANT = "Constant"


class LearningRate(_Frozen):
    """Learning rate of one stage; a Constant without `peak` goes on at the rate the stage before ended with."""

    schedule: Schedule
    peak: Annotated[float, Field(gt=0)] | None = None
    final: Annotated[float, Field(ge=0)] | None = None
    warmup_tokens: Annotated[int, Field(ge=0)] = 0


class Stage(_Frozen):
    """One leg of the recipe: a token budget, a learning rate and a mixture."""

    name: str
    tokens: Annotated[int, Field(gt=0)]
    learning_rate: LearningRate
    mixture: Annotated[tuple[MixtureEntry, ...], Field(min_length=1)]


class BeyondLimit(StrEnum):
    """What happens when a source has been read `max_epochs` times."""

    REPEAT = "Repeat"
    """Go on with another permutation, and warn."""
    RENORMALIZE = "Renormalize"
    """The other sources of the mixture take its share, in proportion to theirs at that moment."""
    FAIL = "Fail"
    """Refuse the stage before its first step."""


class OnCorrupt(StrEnum):
    """What happens to a sequence whose part of a shard stays wrong after every retry."""

    FAIL = "Fail"
    SUBSTITUTE = "Substitute"
    """Read another sequence of the source, the same one in every world, and record it."""


class Source(_Frozen):
    """Prepared token shards below `uri` (s3:// or file://)."""

    name: str
    uri: str
    max_epochs: Annotated[int, Field(ge=1)] | None = None
    beyond_limit: BeyondLimit = BeyondLimit.REPEAT
    on_corrupt: OnCorrupt = OnCorrupt.FAIL

    @property
    def stops_at_limit(self) -> bool:
        """Whether the limit changes what is drawn."""
        return self.max_epochs is not None and self.beyond_limit is BeyondLimit.RENORMALIZE


class Validation(_Frozen):
    """Held-out domains, each measured on the first `windows` sequences of its shards, every `every_tokens`."""

    every_tokens: Annotated[int, Field(gt=0)]
    windows: Annotated[int, Field(gt=0)] = 64
    domains: tuple[Source, ...] = ()
    reference_tokenizer_uri: str | None = None
    """Losses are also given per token of this tokenizer, so that models with other tokenizers can be compared."""
    time_budget_seconds: Annotated[float, Field(gt=0)] | None = None
    """What one validation may take; domains it does not come to are first in the next one."""


class ActivationCheckpointing(StrEnum):
    """What the backward pass computes again instead of keeping it from the forward pass; results are the same."""

    NONE = "None"
    SELECTIVE = "Selective"
    """All but the results of matrix products and of attention: cheap, and the larger part of the memory."""
    FULL = "Full"
    """Whole blocks: a third more arithmetic for the least memory."""


class Offload(StrEnum):
    """Where optimizer state is kept and updated."""

    NONE = "None"
    """On the device that computes."""
    CPU = "Cpu"
    """Masters, moments and the update on the host."""
    NVME = "Nvme"
    """As Cpu, and the weights between two uses on the node's disk."""


class Kernels(StrEnum):
    """Whose norms and activations are computed with."""

    TORCH = "Torch"
    LIGER = "Liger"
    """Fused Triton kernels; GPUs only, and the package liger-kernel must be installed."""


class Engine(_Frozen):
    """How the optimizer state is spread and how much one forward pass holds."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    micro_batch_sequences: Annotated[int, Field(ge=0)] = 4
    """Sequences of one forward pass; 0 takes as many as the device's memory is reckoned to hold."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE
    compile: bool = False
    """Compile the blocks with torch.compile; needs a C++ compiler on CPUs and Triton on GPUs."""
    offload: Offload = Offload.NONE
    kernels: Kernels = Kernels.TORCH

    @model_validator(mode="after")
    def _fits_the_stage(self) -> Self:
        # Offloading in stages 1 and 2, DeepSpeed 0.19 keeps a gradient that is not finite for all steps that follow.
        if self.offload is not Offload.NONE and self.zero_stage != 3:
            raise ValueError(f"engine.offload {self.offload} needs engine.zeroStage 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError("engine.compile does not go with engine.zeroStage 3: weights come and go between blocks")
        return self


class Optimizer(_Frozen):
    """AdamW, the paper's settings (section 3.6)."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clipping: float = 1.0


class Checkpoints(_Frozen):
    """Where checkpoints are committed, how often, and which are kept; every 10 minutes where nothing else is said."""

    uri: str
    every_seconds: Annotated[float, Field(gt=0)] | None = None
    every_steps: Annotated[int, Field(ge=1)] | None = None
    every_tokens: Annotated[int, Field(ge=1)] | None = None
    auto: bool = False
    """Choose the time between two from what a save costs and how often the run fails."""
    background: bool = True
    """Training goes on while a checkpoint is uploaded; without, it waits for every commit."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    keep_every_tokens: Annotated[int, Field(ge=1)] | None = None
    """The first checkpoint behind every so many tokens is kept for good."""
    keep_best: Annotated[int, Field(ge=0)] = 0
    """So many with the lowest mean validation loss are kept as well."""
    local_keep: Annotated[int, Field(ge=0)] = 0
    """Newest checkpoints of which each node keeps its own files on its disk, to read them from there."""
    local_every_seconds: Annotated[float, Field(gt=0)] | None = None
    """Time between two that are kept on the nodes only."""

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        given = {
            "every": self.every_seconds is not None or self.auto,
            "everySteps": self.every_steps is not None,
            "everyTokens": self.every_tokens is not None,
        }
        named = [name for name, is_given in given.items() if is_given]
        if len(named) > 1:
            raise ValueError(f"checkpoints.{' and checkpoints.'.join(named)} are given: only one of them can hold")
        if self.auto and self.every_seconds is not None:
            raise ValueError("checkpoints.every is either Auto or a duration, not both")
        if self.local_every_seconds is not None and not self.local_keep:
            raise ValueError("checkpoints.localEvery needs checkpoints.localKeep of at least 1: nothing would be kept")
        return self


class SpikeAction(StrEnum):
    """What is done about a step whose loss lies far above those before it."""

    ALERT = "Alert"
    """Say so, and train it."""
    SKIP = "Skip"
    """Drop its gradient: the step counts, the weights stay."""
    ROLLBACK = "Rollback"
    """Return to a checkpoint before it, and leave out the sequences around it."""


class Forgetting(_Frozen):
    """When a later stage counts as forgetting what earlier ones taught."""

    domains: tuple[str, ...] = ()
    """Held-out domains that must not suffer; all of them where none is named."""
    max_rise: Annotated[float, Field(gt=0)] = 0.05
    """Nats per token that a domain's loss may lie above what it was before the stage's first step."""


class Guards(_Frozen):
    """When the training loss counts as a spike, and what is done then; what counts as forgetting."""

    spike_action: SpikeAction = SpikeAction.ALERT
    spike_sigmas: Annotated[float, Field(ge=2)] = 6.0
    """Standard deviations above the mean of the window."""
    window_steps: Annotated[int, Field(ge=8)] = 128
    """Steps that the mean and the deviation are taken from."""
    grace_steps: Annotated[int, Field(ge=0)] = 100
    """Steps after the start of a stage in which nothing is a spike: another mixture has another loss."""
    rollback_steps: Annotated[int, Field(ge=1)] = 100
    """The sequences from so many steps before the spike on are left out."""
    skip_steps: Annotated[int, Field(ge=2)] = 200
    """How many steps are left out, counted from there."""
    most_rollbacks: Annotated[int, Field(ge=1)] = 3
    """Rollbacks of a run after which a further spike fails it."""
    forgetting: Forgetting = Forgetting()

    @model_validator(mode="after")
    def _skip_covers_the_spike(self) -> Self:
        if self.skip_steps <= self.rollback_steps:
            raise ValueError(
                f"guards.rollback.skip ({self.skip_steps} steps) must be more than guards.rollback.back "
                f"({self.rollback_steps} steps): otherwise the spike itself is trained again"
            )
        return self


class HangLimits(_Frozen):
    """How long a worker may go without a sign of progress, by section; seconds."""

    init: Annotated[float, Field(gt=0)] = 600.0
    restore: Annotated[float, Field(gt=0)] = 3600.0
    first_step: Annotated[float, Field(gt=0)] = 1800.0
    step: Annotated[float, Field(gt=0)] = 300.0
    validation: Annotated[float, Field(gt=0)] = 1800.0
    save: Annotated[float, Field(gt=0)] = 1800.0

    def of(self, section: Section) -> float:
        """Return the limit of one section."""
        limits = {
            Section.INIT: self.init,
            Section.RESTORE: self.restore,
            Section.FIRST_STEP: self.first_step,
            Section.STEP: self.step,
            Section.VALIDATE: self.validation,
            Section.SAVE: self.save,
        }
        return limits[section]

    @property
    def longest(self) -> float:
        """The largest limit."""
        return max(self.of(section) for section in Section)


class StartFrom(_Frozen):
    """A checkpoint of another run to begin with: its weights, its moments and its step."""

    uri: str
    step: Annotated[int, Field(ge=1)]


class Attention(StrEnum):
    """Whether a token sees the documents before its own in the same sequence."""

    ACROSS_DOCUMENTS = "AcrossDocuments"
    WITHIN_DOCUMENT = "WithinDocument"
    """Positions start anew with every document."""


class RunConfig(_Frozen):
    """The whole plan of a run, and the stage this Job trains."""

    run: str
    namespace: str
    incarnation: Annotated[int, Field(ge=0)]
    """Creation time of the run object, Unix seconds: a run applied anew orders its checkpoints after the old ones."""
    stage: str
    model: Model
    tokenizer_uri: str
    """Folder or tokenizer.json of the tokenizer; checked against the model's vocabulary and the sources' indexes."""
    initial_weights_uri: str | None = None
    """Folder of a Llama in Hugging Face's format to begin with; read only while the run has no checkpoint."""
    start_from: StartFrom | None = None
    """Checkpoint of another run to begin with instead; read only while the run has no checkpoint of its own."""
    engine: Engine = Engine()
    optimizer: Optimizer = Optimizer()
    sequence_length: Annotated[int, Field(ge=8)]
    global_batch_sequences: Annotated[int, Field(ge=1)]
    attention: Attention = Attention.ACROSS_DOCUMENTS
    sources: tuple[Source, ...]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    validation: Validation
    checkpoints: Checkpoints
    guards: Guards = Guards()
    hang: HangLimits = HangLimits()
    seed: int = 0

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        if self.stage not in [s.name for s in self.stages]:
            raise ValueError(f"stage {self.stage!r} is not among stages {[s.name for s in self.stages]}")
        known = {source.name for source in self.sources}
        for stage in self.stages:
            unknown = {entry.source for entry in stage.mixture} - known
            if unknown:
                raise ValueError(f"stages[{stage.name}].mixture names {sorted(unknown)}; sources are {sorted(known)}")
            pieces(stage.mixture, f"stages[{stage.name}].mixture")
        held_out = [domain.name for domain in self.validation.domains]
        strange = sorted(set(self.guards.forgetting.domains) - set(held_out))
        if strange:
            raise ValueError(f"guards.forgetting.domains names {strange}; validation.domains are {sorted(held_out)}")
        if self.start_from is not None and self.initial_weights_uri is not None:
            raise ValueError("startFrom and initialWeights are given: only one of them can be what the run begins with")
        first = self.stages[0]
        if first.learning_rate.peak is None:
            raise ValueError(f"stages[{first.name}].learningRate.peak is missing: no stage before it has a rate")
        return self

    @property
    def global_batch_tokens(self) -> int:
        """Tokens of one step, whatever the world size."""
        return self.sequence_length * self.global_batch_sequences

    @property
    def stage_index(self) -> int:
        """Position of the stage to train."""
        return [s.name for s in self.stages].index(self.stage)

    def stage_steps(self, index: int) -> range:
        """Steps of stage `index`, numbered over the run; a budget that is no multiple of the batch rounds up."""
        start = 0
        for stage in self.stages[:index]:
            start += -(-stage.tokens // self.global_batch_tokens)
        return range(start, start + -(-self.stages[index].tokens // self.global_batch_tokens))

    @property
    def model_hash(self) -> str:
        """Identity of the model's geometry, kept in every checkpoint."""
        return _digest(self.model.model_dump(mode="json"))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def load(path: str | Path) -> RunConfig:
    """Read a rendered configuration; raises pydantic's ValidationError naming each wrong field."""
    return RunConfig.model_validate_json(Path(path).read_bytes())
