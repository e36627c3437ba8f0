"""Typed models of a SkyworkRun's spec: the one source of the CRD, of its defaults and of `kubectl explain`.

Field docstrings become the descriptions. `rules(...)` attaches CEL to the object it stands in: the API server checks
them, so that a bad manifest never reaches the operator.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema
from pydantic.types import StringConstraints

from skywork_operator.api.data import Domain, MixtureEntry, Source
from skywork_operator.api.faults import FailurePolicy, HangDetection
from skywork_operator.api.fields import Base, Decimal, Duration, Name, Quantity, Uri, atomic, list_map, rules
from skywork_operator.api.placement import Nodes, Scheduling
from skywork_operator.api.quantities import AUTO_DURATION_PATTERN


class Model(Base):
    """Geometry of the decoder: a preset, a preset changed field by field, or every field by hand."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.preset) || (has(self.layers) && has(self.hidden) && has(self.heads) && has(self.ffn) "
                "&& has(self.vocabSize))",
                "model needs a preset (tiny, skywork-13b) or all of layers, hidden, heads, ffn and vocabSize",
            )
        )
    )

    preset: Literal["tiny", "skywork-13b"] | None = None
    """Named geometry to start from; fields given beside it override it. skywork-13b is the paper's Table 3."""
    layers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Decoder blocks."""
    hidden: Annotated[int, Field(ge=8, le=131072)] | None = None
    """Width of the residual stream."""
    heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Attention heads; hidden / heads must be an even whole number."""
    kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Key and value heads, a divisor of heads; equal to heads when left out."""
    ffn: Annotated[int, Field(ge=8, le=524288)] | None = None
    """Inner width of the SwiGLU feed-forward layer."""
    vocab_size: Annotated[int, Field(ge=256, le=1048576)] | None = None
    """Rows of the embedding and of the head; at least the tokenizer's vocabulary."""
    rope_theta: Decimal | None = None
    """Base of the rotary angles; the preset's or 10000 when left out."""
    norm_eps: Decimal | None = None
    """Added to the mean square in RMSNorm; the preset's or 1e-6 when left out."""


class Tokenizer(Base):
    """The tokenizer that made the token shards."""

    uri: Uri
    """Folder that holds tokenizer.json; compared with what the sources were prepared with."""


class InitialWeights(Base):
    """Weights to begin with instead of random ones."""

    uri: Uri
    """Folder of a Llama in Hugging Face's format: config.json and safetensors, in one file or in several with an index.
    Geometry and tokenizer must be the run's; a larger vocabSize is fine. `skywork checkpoints geometry` prints the
    model block that fits."""


class StartFrom(Base):
    """A checkpoint of another run to begin with: learning-rate probes, mixture ablations."""

    uri: Uri
    """The other run's checkpoints.uri; it is only read."""
    step: Annotated[int, Field(ge=1, le=1000000000)]
    """Step of the checkpoint; `skywork checkpoints list` prints those there are. Stages of this run that end there or
    before are not trained: give them as the other run has them, so that the data goes on where it stopped."""


class Trainer(Base):
    """The pods that train."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Image of the trainer; the operator's default (chart value trainer.image) when left out."""
    nodes: Nodes
    """Elastic range of nodes."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of each node, one worker each; 0 trains on CPU with gloo."""
    template: Annotated[
        dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "type": "object"})
    ] = {}
    """Strategic patch of the pod template ({metadata, spec}): nodeSelector, tolerations, volumes, resources. The
    container to patch is named trainer. Credentials for object storage come in here, by envFrom of a Secret."""


class Engine(Base):
    """How the optimizer state is spread over the ranks."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "type(self.microBatchSequences) == int "
                "? self.microBatchSequences >= 1 && self.microBatchSequences <= 4096 "
                ": self.microBatchSequences == 'Auto'",
                "engine.microBatchSequences must be Auto or a number from 1 to 4096",
            ),
            (
                "self.offload == 'None' || self.zeroStage == 3",
                "engine.offload needs engine.zeroStage 3",
            ),
            ("!self.compile || self.zeroStage < 3", "engine.compile does not go with engine.zeroStage 3"),
        )
    )

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: 1 spreads masters and moments over the ranks, 2 gradients as well, 3 weights as well."""
    micro_batch_sequences: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | Literal["Auto"],
        WithJsonSchema({"x-kubernetes-int-or-string": True}),
    ] = 4
    """Sequences of one forward pass on one rank, or Auto: as many as the GPU's memory is reckoned to hold. What runs
    out of memory is halved and remembered. The global batch stays the same whatever this is."""
    activation_checkpointing: Literal["None", "Selective", "Full"] = "None"
    """What the backward pass computes again instead of keeping it: all but the results of matrix products and of
    attention, or whole blocks. The result is the same."""
    compile: bool = False
    """Compile the blocks with torch.compile; needs a C++ compiler on CPUs and Triton on GPUs. Not with zeroStage 3."""
    offload: Literal["None", "Cpu", "Nvme"] = "None"
    """Keep masters and moments in the host's memory, and with Nvme the weights on the cache volume; with zeroStage 3.
    The image must have DeepSpeed's CPU Adam built, for Nvme its asynchronous I/O as well."""
    kernels: Literal["Torch", "Liger"] = "Torch"
    """Liger computes norms and activations with fused kernels; the image must have liger-kernel, and GPUs."""


class Optimizer(Base):
    """AdamW; the defaults are the Skywork-13B paper's."""

    betas: Annotated[list[Decimal], Field(min_length=2, max_length=2, json_schema_extra=atomic())] = [
        "0.9",
        "0.95",
    ]
    """Decay rates of the two moments."""
    epsilon: Decimal = "1e-8"
    """Added to the denominator of the update."""
    weight_decay: Decimal = "0.1"
    """Decoupled weight decay of the matrices."""
    gradient_clipping: Decimal = "1.0"
    """Largest global gradient norm."""


class Batch(Base):
    """Size of one optimizer step, the same for every world size."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "quantity(self.globalTokens).isInteger() && "
                "quantity(self.globalTokens).asInteger() % self.sequenceLength == 0",
                "batch.globalTokens must be a multiple of batch.sequenceLength",
            )
        )
    )

    sequence_length: Annotated[int, Field(ge=8, le=1048576)]
    """Tokens of one sequence."""
    global_tokens: Quantity
    """Tokens of one step over all nodes, a multiple of sequenceLength (16777216 in the paper)."""
    attention: Literal["AcrossDocuments", "WithinDocument"] = "AcrossDocuments"
    """Whether a token sees the documents before its own in the same sequence; with WithinDocument, positions start
    anew with every document."""


class ReferenceTokenizer(Base):
    """A tokenizer whose tokens losses are also counted in."""

    uri: Uri
    """Folder that holds tokenizer.json."""


class Validation(Base):
    """Held-out domains, each with a loss of its own."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.timeBudget) || self.timeBudget.matches('[1-9]')", "validation.timeBudget must be more than 0s")
        )
    )

    every_tokens: Quantity = "1G"
    """Tokens trained between two validations; stages also begin and end with one."""
    windows: Annotated[int, Field(ge=1, le=65536)] = 64
    """Sequences of each domain that are measured, the same ones every time."""
    domains: Annotated[list[Domain], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """Prepared shards of each held-out domain."""
    reference_tokenizer: ReferenceTokenizer | None = None
    """Losses are also given per token of this tokenizer, so that models with different ones can be compared, as the
    Skywork report does."""
    time_budget: Duration | None = None
    """What one validation may take, for example 5m. Domains that it does not come to are first in the next one, and the
    condition ValidationIncomplete names them. No limit when left out."""


class Checkpoints(Base):
    """Where state is committed. Deleting a run never deletes its checkpoints; applying it again goes on from them."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.every), has(self.everySteps), has(self.everyTokens)].filter(given, given).size() < 2",
                "only one of checkpoints.every, checkpoints.everySteps and checkpoints.everyTokens can hold",
            ),
            (
                "!has(self.localEvery) || self.localKeep > 0",
                "checkpoints.localEvery needs checkpoints.localKeep of at least 1: nothing would be kept",
            ),
        )
    )

    uri: Uri
    """Folder of this run's checkpoints, history and audit records."""
    every: Annotated[str, StringConstraints(min_length=2, max_length=24, pattern=AUTO_DURATION_PATTERN)] | None = None
    """Time between two checkpoints, or Auto: chosen from what a save costs and how often the run fails. 10m where none
    of every, everySteps and everyTokens is given. Stage ends and preemptions save as well."""
    every_steps: Annotated[int, Field(ge=1, le=1000000000)] | None = None
    """Steps between two checkpoints, instead of a time."""
    every_tokens: Quantity | None = None
    """Tokens between two checkpoints, instead of a time."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 3
    """Newest checkpoints that are kept."""
    keep_every_tokens: Quantity | None = None
    """The first checkpoint behind every so many tokens is kept for good."""
    keep_best: Annotated[int, Field(ge=0, le=1000)] = 0
    """So many with the lowest mean validation loss are kept as well."""
    local_keep: Annotated[int, Field(ge=0, le=10)] = 0
    """Newest checkpoints whose files each node also keeps on its disk (the cache volume), from where a restart reads
    them. Takes the node's part of a checkpoint this many times and once more."""
    local_every: Duration | None = None
    """Time between two checkpoints that are kept on the nodes only: a restart on the same nodes goes on from them."""


class Spikes(Base):
    """When a training loss is a spike, and what is done then."""

    action: Literal["Alert", "Skip", "Rollback"] = "Alert"
    """Alert says so and trains it. Skip drops the step's gradient. Rollback returns to a checkpoint before it and
    leaves out the sequences around it."""
    sigmas: Decimal = "6"
    """Standard deviations above the mean of the window."""
    window: Annotated[int, Field(ge=8, le=100000)] = 128
    """Steps that the mean and the deviation are taken from."""
    grace: Annotated[int, Field(ge=0, le=1000000)] = 100
    """Steps after the start of a stage in which nothing is a spike."""


class Rollback(Base):
    """How far a rollback goes, and what it leaves out."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.skip > self.back", "guards.rollback.skip must be greater than guards.rollback.back")
        )
    )

    back: Annotated[int, Field(ge=1, le=1000000)] = 100
    """Sequences are left out from so many steps before the spike on."""
    skip: Annotated[int, Field(ge=2, le=1000000)] = 200
    """Steps that are left out, counted from there; they count as done."""
    max: Annotated[int, Field(ge=1, le=1000)] = 3
    """Rollbacks of the run after which a further spike fails it."""


class Forgetting(Base):
    """When a later stage counts as forgetting what earlier ones taught."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("double(self.maxRise) > 0.0", "guards.forgetting.maxRise must be greater than 0"),
        )
    )

    domains: Annotated[list[Name], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})] = []
    """Names of validation.domains that must not suffer; all of them where none is named."""
    max_rise: Decimal = "0.05"
    """Nats per token that the loss of such a domain may lie above what it was before the stage's first step."""
    action: Literal["Alert"] = "Alert"
    """Alert sets the condition Forgetting and posts an event; training goes on."""


class Guards(Base):
    """What is done when the training loss goes wrong, and what counts as forgetting. Gradients that are not finite
    never reach the weights."""

    spike: Spikes = Spikes()
    """Losses far above those before them."""
    rollback: Rollback = Rollback()
    """For spike.action Rollback."""
    forgetting: Forgetting = Forgetting()
    """Held-out losses that a later stage drives up."""


class LearningRate(Base):
    """Learning rate over one stage."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.schedule != 'Cosine' || (has(self.peak) && has(self.final))",
                "learningRate with schedule Cosine needs peak and final",
            ),
            ("self.schedule != 'Constant' || !has(self.final)", "learningRate.final is only for schedule Cosine"),
        )
    )

    schedule: Literal["Cosine", "Constant"]
    """Cosine falls from peak to final over the stage; Constant stays at peak."""
    peak: Decimal | None = None
    """Highest rate; a Constant without it goes on at the rate the stage before ended with."""
    final: Decimal | None = None
    """Rate at the end of a Cosine stage."""
    warmup_tokens: Quantity | None = None
    """Tokens over which the rate rises linearly from zero to peak."""


class Stage(Base):
    """One leg of the recipe."""

    name: Name
    """Name of the stage; part of the Job's name."""
    tokens: Quantity
    """Tokens to train in this stage, rounded up to whole steps."""
    learning_rate: LearningRate
    """Learning rate over this stage."""
    mixture: Annotated[
        list[MixtureEntry],
        Field(
            min_length=1,
            max_length=32,
            json_schema_extra=list_map("source")
            | rules(
                (
                    "self.filter(m, !has(m.share)).size() <= 1",
                    "stages[].mixture: only one source may go without a share",
                )
            ),
        ),
    ]
    """Sources and their shares."""


_KNOWN = (
    "{entries}.all(x, !has(x.prepare) || !has(x.prepare.duplicates) || "
    "x.prepare.duplicates.known.all(k, {other}self.sources.exists(s, s.name == k)))"
)
_IMMUTABLE = ("model", "tokenizer", "batch", "optimizer", "validation")


class SkyworkRunSpec(Base):
    """A whole multi-stage pre-training run."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                (f"self.{f} == oldSelf.{f}", f"spec.{f} is immutable: start another run to change it")
                for f in _IMMUTABLE
            ),
            (
                "has(self.initialWeights) == has(oldSelf.initialWeights) "
                "&& (!has(self.initialWeights) || self.initialWeights == oldSelf.initialWeights)",
                "spec.initialWeights is immutable: start another run to change it",
            ),
            (
                "has(self.startFrom) == has(oldSelf.startFrom) "
                "&& (!has(self.startFrom) || self.startFrom == oldSelf.startFrom)",
                "spec.startFrom is immutable: start another run to change it",
            ),
            (
                "!has(self.startFrom) || !has(self.initialWeights)",
                "only one of spec.startFrom and spec.initialWeights can be what the run begins with",
            ),
            (
                "!has(self.startFrom) || self.startFrom.uri != self.checkpoints.uri",
                "spec.startFrom.uri must not be spec.checkpoints.uri: a fork has a folder of its own",
            ),
            (
                "self.checkpoints.uri == oldSelf.checkpoints.uri",
                "spec.checkpoints.uri is immutable: it names this run's past",
            ),
            (
                "oldSelf.sources.all(old, self.sources.exists(new, new.name == old.name))",
                "spec.sources: sources may be appended, not removed or renamed",
            ),
            (
                "self.stages.all(s, !s.name.startsWith('prepare-'))",
                "spec.stages[].name must not begin with prepare-: the Jobs that prepare sources have such names",
            ),
            (
                _KNOWN.format(entries="self.sources", other="k != x.name && "),
                "spec.sources[].prepare.duplicates.known must name other entries of spec.sources",
            ),
            (
                _KNOWN.format(entries="self.validation.domains", other=""),
                "spec.validation.domains[].prepare.duplicates.known must name entries of spec.sources",
            ),
            (
                "self.validation.domains.all(d, !has(d.prepare) || !self.sources.exists(s, s.name == d.name))",
                "spec.validation.domains[].name of a domain with prepare must not be the name of a source, too",
            ),
            (
                "self.stages.all(s, s.mixture.all(m, self.sources.exists(x, x.name == m.source)))",
                "spec.stages[].mixture[].source must name an entry of spec.sources",
            ),
            (
                "self.guards.forgetting.domains.all(d, self.validation.domains.exists(v, v.name == d))",
                "spec.guards.forgetting.domains must name entries of spec.validation.domains",
            ),
            (
                "has(self.stages[0].learningRate.peak)",
                "spec.stages[0].learningRate.peak is missing: no stage before it has a rate to go on with",
            ),
        )
    )

    model: Model
    """The model to train."""
    initial_weights: InitialWeights | None = None
    """Weights to begin with, for continued pre-training of an open model; read only while the run has no checkpoint.
    Left out, weights are random."""
    start_from: StartFrom | None = None
    """Checkpoint of another run to begin with: its weights, optimizer state and step. Read only while the run has no
    checkpoint of its own."""
    tokenizer: Tokenizer
    """The tokenizer of all sources and domains."""
    trainer: Trainer
    """Pods, nodes and GPUs."""
    engine: Engine = Engine()
    """Spread of the optimizer state."""
    optimizer: Optimizer = Optimizer()
    """AdamW settings."""
    batch: Batch
    """Tokens of one step."""
    sources: Annotated[list[Source], Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))]
    """Training data, by name. Sources may be appended; name, uri and epochs of one never change."""
    validation: Validation = Validation()
    """Held-out domains."""
    checkpoints: Checkpoints
    """Where and how often state is saved."""
    stages: Annotated[list[Stage], Field(min_length=1, max_length=32, json_schema_extra=list_map("name"))]
    """The recipe, trained in this order; optimizer state goes from each stage to the next. Stages that have not started
    may be edited, removed and appended."""
    guards: Guards = Guards()
    """Loss spikes, rollbacks and forgetting."""
    failure_policy: FailurePolicy = FailurePolicy()
    """What failures cost, and when to give up."""
    hang_detection: HangDetection = HangDetection()
    """When a worker that makes no progress is given up."""
    scheduling: Scheduling = Scheduling()
    """Where and when pods may run."""
    suspend: bool = False
    """Save, free all nodes, and wait; set it back to go on exactly where training stopped."""
    active_deadline: Duration | None = None
    """How long the run may take from its first stage's start; past that it saves and fails with DeadlineExceeded."""
    ttl_after_finished: Duration | None = None
    """When to delete the run after it has succeeded or failed. Checkpoints are never deleted with it."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """Seed of the initial weights and of the data order."""
