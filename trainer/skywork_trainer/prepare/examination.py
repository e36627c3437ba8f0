"""One chunk's documents, cleaned, judged and counted: the same for the pass that looks for duplicates and the next."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from skywork_trainer.config import Preparation
from skywork_trainer.prepare.chunks import Chunk
from skywork_trainer.prepare.decontaminate import EvaluationSet
from skywork_trainer.prepare.filters import Removal, cleaned, examine
from skywork_trainer.prepare.work import SAMPLES, Counts, Hashes, Removed, Sample

BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 22
Drops = npt.NDArray[np.uint8]
BAD_LINE = "BadLine"
_SAMPLE_CHARACTERS = 200
_REASON_OF_DROP = {1: Removal.DUPLICATE, 2: Removal.NEAR_DUPLICATE}


class Kept(NamedTuple):
    """A document to train on, and the hash it is known by."""

    text: str
    hash: int


class Examined(NamedTuple):
    """A run of lines: those that stay, and what became of all of them."""

    kept: list[Kept]
    counts: Counts


def text_hash(text: str) -> int:
    """Return the hash by which a cleaned document is told from others, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def examined(
    chunk: Chunk, options: Preparation, evaluation: EvaluationSet | None, drops: Drops | None, *, skip: int = 0
) -> Iterator[Examined]:
    """Yield the chunk's lines in batches, but for the first `skip`; `drops` says of each whether it is a duplicate."""
    documents = islice(chunk.documents(options.text_field), options.limit)
    for batch in _batches(islice(enumerate(documents), skip, None)):
        yield _Batch(chunk, options, evaluation, drops).examine(batch)


_Line = tuple[int, tuple[bytes, str | None]]


def _batches(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """Yield runs of lines of a bounded length: books would otherwise take gigabytes together.

    Where a run ends follows from where it begins, so that work goes on in the same runs after a kill.
    """
    batch: list[_Line] = []
    size = 0
    for one in lines:
        batch.append(one)
        size += len(one[1][1] or "")
        if len(batch) == BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Batch:
    """One batch under examination."""

    def __init__(
        self,
        chunk: Chunk,
        options: Preparation,
        evaluation: EvaluationSet | None,
        drops: Drops | None,
    ) -> None:
        self._chunk, self._options, self._evaluation, self._drops = chunk, options, evaluation, drops
        self._removed: dict[str, Removed] = {}
        self._repeated = 0

    def examine(self, batch: list[_Line]) -> Examined:
        judged: list[tuple[int, str, Kept]] = []
        for number, (line, text) in batch:
            if text is None:
                self._leave_out(BAD_LINE, number, line.decode(errors="replace").strip())
                continue
            dropped = _REASON_OF_DROP.get(int(self._drops[number])) if self._drops is not None else None
            if dropped is not None:
                self._leave_out(dropped, number, text)
                continue
            clean = cleaned(text, self._options.filters)
            verdict = examine(clean, self._options.filters)
            if verdict.text is None:
                self._leave_out(verdict.reason or Removal.EMPTY, number, text)
                continue
            self._repeated += verdict.removed_characters
            # Of the whole text, blocks that were taken out included: as the pass that looks for duplicates hashes it.
            judged.append((number, text, Kept(verdict.text, text_hash(clean))))
        kept = self._decontaminated(judged)
        lengths = np.bincount([min(len(k.text).bit_length(), 31) for k in kept], minlength=32)
        return Examined(
            kept,
            Counts(
                lines=len(batch),
                documents=len(kept),
                characters=sum(len(k.text) for k in kept),
                repeated_characters=self._repeated,
                removed=self._removed,
                lengths=tuple(lengths.tolist()),
            ),
        )

    def _decontaminated(self, judged: list[tuple[int, str, Kept]]) -> list[Kept]:
        if self._evaluation is None or not judged:
            return [kept for _, _, kept in judged]
        kept = []
        hits = self._evaluation.matches_all([one.text for _, _, one in judged])
        for (number, text, one), hit in zip(judged, hits, strict=True):
            if hit:
                self._leave_out(Removal.CONTAMINATED, number, text)
            else:
                kept.append(one)
        return kept

    def _leave_out(self, reason: str, number: int, text: str) -> None:
        have = self._removed.get(str(reason), Removed())
        sample = Sample(where=f"{self._chunk.file.key} #{number}", text=text[:_SAMPLE_CHARACTERS])
        self._removed[str(reason)] = Removed(
            documents=have.documents + 1,
            characters=have.characters + len(text),
            samples=(*have.samples, sample)[:SAMPLES],
        )


def duplicates(hashes: list[Hashes], known: Hashes) -> list[Drops]:
    """Return, for every line of every chunk, 1 where its hash occurred before or is among `known`; 0 is no hash."""
    lengths = [len(chunk) for chunk in hashes]
    whole = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)
    drops = np.ones(len(whole), dtype=np.uint8)
    _, first = np.unique(whole, return_index=True)
    drops[first] = 0
    drops[np.isin(whole, known)] = 1
    drops[whole == 0] = 0
    return np.split(drops, np.cumsum(lengths)[:-1]) if lengths else []
