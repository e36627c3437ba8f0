"""What a preparation in progress keeps below `work/` of its output, so that any process can go on with it."""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from skywork_trainer.config import Preparation
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import Shard
from skywork_trainer.prepare.texts import TextFile
from skywork_trainer.storage import StorageError, Store

FORMAT = 2
"""Raised when the same inputs and options would give other shards than before."""
_BINS = 32
SAMPLES = 3
Hashes = npt.NDArray[np.uint64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Frozen):
    """A line or document that was left out, to look at."""

    where: str
    text: str


class Removed(_Frozen):
    """What one step took out."""

    documents: int = 0
    characters: int = 0
    samples: tuple[Sample, ...] = ()


class Counts(_Frozen):
    """What became of the lines of a chunk, or of all of them."""

    lines: int = 0
    documents: int = 0
    """That stayed."""
    characters: int = 0
    """Of those that stayed."""
    repeated_characters: int = 0
    """In repeated blocks, taken out of documents that stayed."""
    removed: dict[str, Removed] = {}
    """By reason; BadLine and those of `filters.Removal`."""
    lengths: tuple[int, ...] = (0,) * _BINS
    """Documents that stayed, by the binary logarithm of their characters."""

    def plus(self, other: "Counts") -> "Counts":
        """Return both added up; samples of the first come first."""
        removed = dict(self.removed)
        for reason, more in other.removed.items():
            have = removed.get(reason, Removed())
            removed[reason] = Removed(
                documents=have.documents + more.documents,
                characters=have.characters + more.characters,
                samples=(have.samples + more.samples)[:SAMPLES],
            )
        return Counts(
            lines=self.lines + other.lines,
            documents=self.documents + other.documents,
            characters=self.characters + other.characters,
            repeated_characters=self.repeated_characters + other.repeated_characters,
            removed=removed,
            lengths=tuple(a + b for a, b in zip(self.lengths, other.lengths, strict=True)),
        )


class ChunkRecord(_Frozen):
    """How far one chunk is: its first `counts.lines` lines are in `shards` or left out."""

    inputs_sha256: str
    finished: bool = False
    counts: Counts = Counts()
    taken: int = 0
    """Documents of the batch of lines behind those that are in `shards`, too."""
    shards: tuple[Shard, ...] = ()


class Marker(_Frozen):
    """A step that is done."""

    inputs_sha256: str


_Document = TypeVar("_Document", bound=BaseModel)


def inputs_digest(options: Preparation, files: Sequence[TextFile], tokenizer_sha256: str, known: Sequence[str]) -> str:
    """Return the identity of all that decides what the shards hold; `known` are the known sources' fingerprints."""
    decides = options.model_dump(mode="json", exclude={"inputs", "output", "tokenizer_uri", "known", "decontamination"})
    made_from = {
        "format": FORMAT,
        "inputs": [file.identity for file in files],
        "tokenizer": tokenizer_sha256,
        "known": list(known),
        "options": decides,
        "decontamination": options.decontamination.words,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


class Workspace:
    """Reads and writes the records of one preparation; refuses those of another."""

    def __init__(self, store: Store, digest: str) -> None:
        self.store, self.digest = store, digest

    def chunk(self, number: int) -> ChunkRecord:
        """Return how far a chunk is."""
        return self._read(ChunkRecord, _chunk_key(number)) or ChunkRecord(inputs_sha256=self.digest)

    def keep_chunk(self, number: int, record: ChunkRecord) -> None:
        """Write how far a chunk is."""
        self._write(_chunk_key(number), record)

    def scanned(self, number: int) -> bool:
        """Return whether a chunk's documents are hashed."""
        return self._read(Marker, f"work/scan-{number:05d}.json") is not None

    def keep_scan(self, number: int, hashes: Hashes, signatures: npt.NDArray[np.uint32] | None) -> None:
        """Write the hash of every line of a chunk, 0 for those that are out already, and their signatures."""
        self.store.put(f"work/scan-{number:05d}.u64", hashes.astype("<u8").tobytes())
        if signatures is not None:
            self.store.put(f"work/scan-{number:05d}.sig", signatures.astype("<u4").tobytes())
        self._write(f"work/scan-{number:05d}.json", Marker(inputs_sha256=self.digest))

    def hashes(self, number: int) -> Hashes:
        """Return the hash of every line of a chunk."""
        return np.frombuffer(self.store.get(f"work/scan-{number:05d}.u64"), dtype="<u8")

    def signatures(self, number: int, permutations: int) -> npt.NDArray[np.uint32]:
        """Return the signature of every line of a chunk: [lines, permutations]."""
        content = self.store.get(f"work/scan-{number:05d}.sig")
        return np.frombuffer(content, dtype="<u4").reshape(-1, permutations)

    def resolved(self) -> bool:
        """Return whether it is known which lines are duplicates."""
        return self._read(Marker, "work/drops.json") is not None

    def keep_drops(self, drops: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Write for every line of every chunk whether it is a duplicate."""
        for number, chunk in enumerate(drops):
            self.store.put(f"work/drops-{number:05d}.u8", chunk.tobytes())
        self._write("work/drops.json", Marker(inputs_sha256=self.digest))

    def drops(self, number: int) -> npt.NDArray[np.uint8]:
        """Return for every line of a chunk whether it is a duplicate."""
        return np.frombuffer(self.store.get(f"work/drops-{number:05d}.u8"), dtype=np.uint8)

    def clear(self) -> None:
        """Remove everything; readers by now have what it was kept for."""
        for key in self.store.list("work/"):
            self.store.delete(key)

    def _read(self, model: type[_Document], key: str) -> _Document | None:
        try:
            found = model.model_validate_json(self.store.get(key))
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            return None
        except ValidationError as error:
            raise DataError("OutputOccupied", f"{self.store.uri}/{key} is damaged: delete the folder work/") from error
        if getattr(found, "inputs_sha256", "") != self.digest:
            raise occupied(self.store.uri, "an unfinished source (work/)")
        return found

    def _write(self, key: str, record: BaseModel) -> None:
        self.store.put(key, record.model_dump_json().encode())


def occupied(output: str, what: str) -> DataError:
    """Return the error of an output that holds something else."""
    return DataError(
        "OutputOccupied",
        f"{output} holds {what} made from other inputs or options: give another --output, or delete what is there",
    )


def _chunk_key(number: int) -> str:
    return f"work/chunk-{number:05d}.json"
