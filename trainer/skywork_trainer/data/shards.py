"""Prepared token shards: what lies below a source's URI, and what its `index.json` says about it.

shard-00000.bin   tokens, little-endian uint16 (vocabularies up to 65,536) or uint32, documents ended by end-of-text
shard-00000.idx   where each document starts, and where the last one ends, in tokens: uint64, little-endian
shard-00000.sum   SHA-256 of every part of the token file, 32 bytes each: readers fetch and verify parts, not shards
documents.u64     hash of every document's text: what other sources are deduplicated against
index.json        written last: without it there is no source
"""

import hashlib
from bisect import bisect_right
from itertools import accumulate
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skywork_trainer.data.errors import DataError
from skywork_trainer.data.fetch import Part
from skywork_trainer.storage import StorageError, open_store

INDEX_FILE = "index.json"
DOCUMENTS_FILE = "documents.u64"
PART_BYTES = 1 << 22
"""4 MiB: one GET that storage serves well, and a few thousand sequences."""
Tokens = npt.NDArray[np.int64]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Frozen):
    """One token file and its document offsets."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.bin$")]
    tokens: _Count
    documents: _Count
    bytes: _Count
    sha256: _Sha256
    offsets_sha256: _Sha256
    parts_sha256: _Sha256
    text_bytes: _Count
    text_characters: _Count

    @property
    def stem(self) -> str:
        """Name of the shard's files without their suffix."""
        return self.file.removesuffix(".bin")


class SourceIndex(_Frozen):
    """Content of `index.json`."""

    version: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    tokenizer_sha256: _Sha256
    vocab_size: Annotated[int, Field(ge=1)]
    end_of_text: _Count
    """The token that ends every document."""
    part_bytes: Annotated[int, Field(ge=4, multiple_of=4)]
    """Token files are fetched and verified in parts of so many bytes."""
    inputs_sha256: _Sha256
    """What the shards were made from, and how: a second preparation of the same inputs has nothing to do."""
    documents_sha256: _Sha256
    """Of documents.u64."""
    bad_lines: _Count = 0
    shards: tuple[Shard, ...]
    fingerprint: str = ""
    """SHA-256 over everything else: the identity of the source's content, kept in every checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        width = np.dtype(self.dtype).itemsize
        for shard in self.shards:
            if shard.bytes != shard.tokens * width:
                raise ValueError(f"{shard.file}: {shard.bytes} bytes are not {shard.tokens} tokens of {self.dtype}")
        if self.fingerprint not in ("", self.digest()):
            raise ValueError("the fingerprint does not match the content: the file was edited or cut short")
        return self

    def digest(self) -> str:
        """Return the fingerprint that the content should have."""
        # Fields in the order of their definition; whole numbers and ASCII only, so there is one way to write them.
        return hashlib.sha256(self.model_dump_json(exclude={"fingerprint"}).encode()).hexdigest()

    def sealed(self) -> "SourceIndex":
        """Return the index with its fingerprint."""
        return self.model_copy(update={"fingerprint": self.digest()})

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def numpy_dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """Little-endian type of one token."""
        return np.dtype("<u2") if self.dtype == "uint16" else np.dtype("<u4")


def part_digests(content: bytes, part_bytes: int) -> bytes:
    """Return the SHA-256 of every part of a token file, one after the other."""
    starts = range(0, len(content), part_bytes)
    return b"".join(hashlib.sha256(content[start : start + part_bytes]).digest() for start in starts)


def digests_part(shard: Shard, part_bytes: int) -> Part:
    """Return the shard's file of digests, as a part of its own."""
    return Part(f"{shard.stem}.sum", 0, 32 * -(-shard.bytes // part_bytes), shard.parts_sha256)


def part_at(shard: Shard, number: int, part_bytes: int, digests: bytes) -> Part:
    """Return part `number` of a shard's token file, by its file of digests."""
    start = number * part_bytes
    digest = digests[32 * number : 32 * number + 32].hex()
    return Part(shard.file, start, min(part_bytes, shard.bytes - start), digest)


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the smallest type that holds every token of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def read_index(name: str, uri: str) -> SourceIndex:
    """Read and check a source's index; DataError SourceMissing or SourceInvalid, or StorageError, say what is wrong."""
    try:
        content = open_store(uri).get(INDEX_FILE)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        raise DataError(
            "SourceMissing",
            f"source {name!r}: no {INDEX_FILE} below {uri}: prepare it with `skywork data prepare --output {uri}`",
        ) from error
    try:
        index = SourceIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "SourceInvalid", f"source {name!r}: {uri}/{INDEX_FILE} {where}: {first['msg']}: prepare the source again"
        ) from error
    if not index.fingerprint:
        raise DataError("SourceInvalid", f"source {name!r}: {uri}/{INDEX_FILE} has no fingerprint: prepare it again")
    return index


class Windows:
    """The training sequences of a source: windows of `sequence_length` + 1 tokens, none across a shard's end.

    Neighbours share one token, the last target of one and the first input of the next, so every token is a target.
    """

    def __init__(self, index: SourceIndex, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self._ends = list(accumulate(max(0, shard.tokens - 1) // sequence_length for shard in index.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def locate(self, sequence: int) -> tuple[int, int]:
        """Return (shard, first token) of a sequence of the source."""
        shard = bisect_right(self._ends, sequence)
        within = sequence - (self._ends[shard - 1] if shard else 0)
        return shard, within * self.sequence_length
