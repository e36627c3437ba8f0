"""The data half of a SkyworkRun's spec: sources, held-out domains, how text becomes either, and mixtures of them."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.types import StringConstraints

from skywork_operator.api.fields import Base, Decimal, Name, Quantity, Uri, atomic, list_map, rules

Script = Literal["Han", "Kana", "Hangul", "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai"]


class ScriptShare(Base):
    """Least part of a document in one script."""

    model_config = ConfigDict(
        json_schema_extra=rules(("double(self.share) <= 1.0", "filters.minScriptShare[].share must lie in 0..1"))
    )

    script: Script
    """Script that letters are counted in."""
    share: Decimal
    """Least part of the document's letters that must be of this script, 0 to 1."""


class Filters(Base):
    """What a document must be like to be trained on; what is left out is not asked for."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.maxCharacters) || !has(self.minCharacters) || self.minCharacters <= self.maxCharacters",
                "filters.minCharacters must not be greater than filters.maxCharacters",
            ),
            (
                "!has(self.maxSymbolShare) || double(self.maxSymbolShare) <= 1.0",
                "filters.maxSymbolShare must lie in 0..1",
            ),
            (
                "!has(self.maxRepeatedShare) || double(self.maxRepeatedShare) <= 1.0",
                "filters.maxRepeatedShare must lie in 0..1",
            ),
        )
    )

    normalise: bool = True
    """Bring text into one form first: Unicode NFC, line ends, control characters, runs of blank lines."""
    min_characters: Annotated[int, Field(ge=1)] | None = None
    """Drop documents with fewer characters."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Drop documents with more characters."""
    max_symbol_share: Decimal | None = None
    """Drop documents in which a larger part of the visible characters, 0 to 1, is neither letter, digit nor everyday
    punctuation."""
    remove_repeated_blocks: bool = False
    """Keep only the first of the lines and paragraphs that a document repeats."""
    max_repeated_share: Decimal | None = None
    """Drop documents in which a larger part of the characters, 0 to 1, lies in repeated lines and paragraphs."""
    min_script_share: Annotated[list[ScriptShare], Field(max_length=10, json_schema_extra=list_map("script"))] = []
    """Drop documents with fewer letters of a script, for example less than 0.3 Han."""


class NearDuplicates(Base):
    """Documents that are alike count as one: the first is kept."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "double(self.threshold) >= 0.3 && double(self.threshold) < 1.0",
                "duplicates.near.threshold must be at least 0.3 and less than 1",
            )
        )
    )

    threshold: Decimal = "0.8"
    """Likeness from which on two documents count as one: Jaccard similarity of their runs of words, 0.3 to 1."""
    words: Annotated[int, Field(ge=1, le=32)] = 5
    """Words of one run."""
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    """Hash functions of the MinHash estimate; more are more exact and slower."""


class Duplicates(Base):
    """Which documents are dropped because they occurred before."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.exact || has(self.near)", "duplicates.exact is false and duplicates.near is missing: nothing to do")
        )
    )

    exact: bool = True
    """Drop documents that are the same, character by character after normalisation, as an earlier one."""
    known: Annotated[list[Name], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"})] = []
    """Names of other entries of spec.sources whose documents count as having occurred before. Those among them that
    are prepared by this run are prepared first."""
    near: NearDuplicates | None = None
    """Drop documents that are much like an earlier one, too."""


class Decontaminate(Base):
    """Keep evaluation sets out of the training data."""

    uris: Annotated[list[Uri], Field(min_length=1, max_length=64, json_schema_extra=atomic())]
    """Evaluation sets, in the formats that inputs have: s3:// or file://."""
    words: Annotated[int, Field(ge=4, le=64)] = 13
    """Drop documents that share a run of so many words with an evaluation set."""


class Prepare(Base):
    """How text becomes token shards, by an Indexed Job of CPU pods before the first stage that needs them."""

    model_config = ConfigDict(
        json_schema_extra=rules(("double(self.maxBadShare) <= 1.0", "prepare.maxBadShare must lie in 0..1"))
    )

    inputs: Annotated[list[Uri], Field(min_length=1, max_length=256, json_schema_extra=atomic())]
    """Files, folders or patterns (s3:// or file://) of JSON lines (.jsonl, .gz, .zst) or Parquet, in the order they
    are read."""
    pods: Annotated[int, Field(ge=1, le=1024)] = 1
    """Parts the work is split into, one pod each, all at once."""
    workers_per_pod: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes of each pod; give the pods as many cores in trainer.template."""
    text_field: Annotated[str, StringConstraints(min_length=1, max_length=128)] = "text"
    """Key or column that holds the text."""
    shard_tokens: Quantity = "16777216"
    """A shard ends with the document that reaches this many tokens."""
    chunk_bytes: Quantity = "256Mi"
    """Inputs are worked on in chunks of about so many bytes; a pod that is lost repeats one chunk per worker."""
    max_bad_share: Decimal = "0.01"
    """Largest part of the lines that may be unreadable, 0 to 1; more fail the run."""
    filters: Filters = Filters()
    """What a document must be like to be kept."""
    duplicates: Duplicates | None = None
    """Drop documents that occurred before; costs a first pass over all inputs. Off when left out."""
    decontaminate: Decontaminate | None = None
    """Drop documents that hold parts of an evaluation set. Off when left out."""

    @property
    def scans(self) -> bool:
        """Whether the inputs are read twice: documents that occur again are found before any shard is written."""
        return self.duplicates is not None and (self.duplicates.exact or self.duplicates.near is not None)


class Epochs(Base):
    """How often a source may be read, and what happens then."""

    max: Annotated[int, Field(ge=1, le=1000000)]
    """Times that the run may read the whole source."""
    beyond: Literal["Repeat", "Renormalize", "Fail"] = "Repeat"
    """Repeat goes on with another order and warns (condition DataRepeated); Renormalize gives the source's share to
    the others of the mixture; Fail refuses the stage before its first step."""


class Tokens(Base):
    """Token shards below a URI, by name."""

    name: Name
    """Name that mixtures and metrics use."""
    uri: Uri
    """Folder with index.json, as `skywork data prepare` writes it."""
    prepare: Prepare | None = None
    """How the shards are made from text. Without it they must be there already. May be changed until the preparation
    has begun; once it has ended, a change has no effect."""


class Domain(Tokens):
    """A held-out domain: token shards that are never trained on."""


class Source(Tokens):
    """A named set of token shards to train on."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.uri == oldSelf.uri", "spec.sources[].uri is immutable: append another source instead"),
            (
                "has(self.epochs) == has(oldSelf.epochs) && (!has(self.epochs) || self.epochs == oldSelf.epochs)",
                "spec.sources[].epochs is immutable: the order of the data follows from it",
            ),
        )
    )

    epochs: Epochs | None = None
    """How often the source may be read; without it, as often as the stages ask for."""
    on_corrupt_shard: Literal["Fail", "Substitute"] = "Fail"
    """What happens to a sequence whose part of a shard stays wrong after every retry: Fail ends the run, Substitute
    reads another sequence of the source, the same one in every world, and records it."""


class Point(Base):
    """A breakpoint of a share."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "double(self.at) <= 1.0 && double(self.share) <= 1.0",
                "share.points[].at and share.points[].share must lie in 0..1",
            )
        )
    )

    at: Decimal
    """Fraction of the stage that is trained, 0 to 1; greater than that of the point before."""
    share: Decimal
    """Share at that moment, 0 to 1."""


class Share(Base):
    """A source's part of the stage's sequences: moving from `from` to `to`, or along `points`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(!has(self.from) || double(self.from) <= 1.0) && (!has(self.to) || double(self.to) <= 1.0)",
                "share.from and share.to must lie in 0..1",
            ),
            (
                "has(self.from) != has(self.points)",
                "share.from and share.points: give exactly one of them",
            ),
            (
                "!has(self.points) || (!has(self.to) && self.shape == 'Constant')",
                "share.to and share.shape go with share.from, not with share.points",
            ),
            (
                "self.shape == 'Constant' || has(self.to)",
                "share.to is missing: a Linear or Quadratic share needs both ends",
            ),
        )
    )

    from_: Annotated[Decimal | None, Field(alias="from")] = None
    """Share at the start of the stage, 0 to 1."""
    to: Decimal | None = None
    """Share at the end of the stage, 0 to 1."""
    shape: Literal["Constant", "Linear", "Quadratic"] = "Constant"
    """Quadratic from 0.1 to 0.4 averages 0.2, as the paper's second stage does."""
    points: Annotated[list[Point], Field(min_length=1, max_length=32, json_schema_extra=atomic())] | None = None
    """Breakpoints instead of from, to and shape: straight lines between them, level before the first and after the
    last."""


class MixtureEntry(Base):
    """One source of a mixture."""

    source: Name
    """Name of an entry of sources."""
    share: Share | None = None
    """One entry may go without: it takes what the others leave."""
