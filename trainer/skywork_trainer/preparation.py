"""How text becomes token shards: what the operator renders for a source's preparation; imported by way of `config`."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


SCRIPTS = ("Han", "Kana", "Hangul", "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai")


class Filters(_Frozen):
    """What a document must be like to be trained on; every limit is off unless it is set."""

    normalise: bool = True
    """Unicode NFC, line ends, control characters and runs of blank lines."""
    min_characters: Annotated[int, Field(ge=1)] = 1
    max_characters: Annotated[int, Field(ge=1)] | None = None
    max_symbol_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Largest part of the visible characters that may be neither letters, digits nor everyday punctuation."""
    remove_repeated_blocks: bool = False
    """Keep only the first of the lines and paragraphs that a document repeats."""
    max_repeated_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Largest part of a document's characters that may lie in repeated lines and paragraphs."""
    min_script_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Least part of a document's letters in each script, e.g. {"Han": 0.3}."""

    @model_validator(mode="after")
    def _scripts_known(self) -> Self:
        unknown = sorted(set(self.min_script_share) - set(SCRIPTS))
        if unknown:
            raise ValueError(f"min_script_share names {', '.join(unknown)}; the scripts are {', '.join(SCRIPTS)}")
        return self


class NearDuplicates(_Frozen):
    """Documents as alike as `threshold` (Jaccard similarity of their word n-grams, estimated by MinHash) are one."""

    threshold: Annotated[float, Field(ge=0.3, lt=1)] = 0.8
    words: Annotated[int, Field(ge=1, le=32)] = 5
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128


class Decontamination(_Frozen):
    """Drop documents that share a run of `words` words with an evaluation set."""

    uris: tuple[str, ...] = ()
    words: Annotated[int, Field(ge=4, le=64)] = 13


class Preparation(_Frozen):
    """How text becomes one source's token shards."""

    inputs: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths, URIs or patterns of JSON lines (.jsonl, .gz, .zst) or Parquet files, in the order they are read."""
    output: str
    """URI of the source."""
    tokenizer_uri: str
    text_field: str = "text"
    filters: Filters = Filters()
    exact_duplicates: bool = False
    """Drop documents that occurred before, byte for byte after normalisation."""
    known: tuple[str, ...] = ()
    """URIs of prepared sources whose documents count as having occurred before."""
    near_duplicates: NearDuplicates | None = None
    decontamination: Decontamination = Decontamination()
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest part of the lines that may be unreadable."""
    shard_tokens: Annotated[int, Field(ge=1)] = 1 << 24
    """A shard ends with the document that reaches this many tokens."""
    chunk_bytes: Annotated[int, Field(ge=1)] = 1 << 28
    """Inputs are worked on in chunks of about so many bytes; no shard spans two."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only so many lines of each chunk."""
