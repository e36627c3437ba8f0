"""Typed models of a SkyworkRun's spec: the one source of the CRD, of its defaults and of `kubectl explain`.

Field docstrings become the descriptions. `rules(...)` attaches CEL to the object it stands in: the API server checks
them, so that a bad manifest never reaches the operator.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.types import StringConstraints

from skywork_operator.api.data import Domain, MixtureEntry, Source
from skywork_operator.api.fields import Base, Decimal, Duration, Name, Quantity, Uri, atomic, list_map, rules


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


class Tokenizer(Base):
    """The tokenizer that made the token shards."""

    uri: Uri
    """Folder that holds tokenizer.json; compared with what the sources were prepared with."""


class Nodes(Base):
    """How many nodes the run may train on."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.min <= self.max", "trainer.nodes.min must not be greater than trainer.nodes.max")
        )
    )

    min: Annotated[int, Field(ge=1, le=4096)] = 1
    """Fewest nodes to train on; with fewer the run waits."""
    max: Annotated[int, Field(ge=1, le=4096)]
    """Nodes asked for, one pod each."""
    shrink_after: Duration = "2m"
    """How long a generation waits for all `max` nodes before it starts with those that are ready."""


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

    zero_stage: Annotated[int, Field(ge=0, le=2)] = 1
    """DeepSpeed ZeRO stage."""
    micro_batch_sequences: Annotated[int, Field(ge=1, le=4096)] = 4
    """Sequences of one forward pass on one rank; the global batch stays the same whatever this is."""


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


class Validation(Base):
    """Held-out domains, each with a loss of its own."""

    every_tokens: Quantity = "1G"
    """Tokens trained between two validations; stages also begin and end with one."""
    windows: Annotated[int, Field(ge=1, le=65536)] = 64
    """Sequences of each domain that are measured, the same ones every time."""
    domains: Annotated[list[Domain], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """Prepared shards of each held-out domain."""


class Checkpoints(Base):
    """Where state is committed. Deleting a run never deletes its checkpoints; applying it again goes on from them."""

    uri: Uri
    """Folder of this run's checkpoints, history and audit records."""
    every: Duration = "10m"
    """Time between two checkpoints; stage ends and preemptions save as well."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 3
    """Newest checkpoints that are kept."""


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


class FailurePolicy(Base):
    """When to give up."""

    restarts_without_progress: Annotated[int, Field(ge=0, le=1000)] = 5
    """Generations that may fail in a row without a new checkpoint. Deleted and evicted pods do not count."""


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
                "has(self.stages[0].learningRate.peak)",
                "spec.stages[0].learningRate.peak is missing: no stage before it has a rate to go on with",
            ),
        )
    )

    model: Model
    """The model to train."""
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
    failure_policy: FailurePolicy = FailurePolicy()
    """When to give up."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """Seed of the initial weights and of the data order."""
