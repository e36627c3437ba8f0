"""The two passes over a chunk, as a process of its own can run them: hashing its documents, and writing its shards."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from skywork_trainer.config import Preparation
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import Shard
from skywork_trainer.prepare.chunks import Chunk, cut
from skywork_trainer.prepare.decontaminate import EvaluationSet
from skywork_trainer.prepare.examination import BAD_LINE, Kept, examined, text_hash
from skywork_trainer.prepare.filters import cleaned, examine
from skywork_trainer.prepare.near import signature
from skywork_trainer.prepare.shardwriter import ShardWriter
from skywork_trainer.prepare.texts import JSON_SUFFIXES, find_texts
from skywork_trainer.prepare.work import ChunkRecord, Counts, Workspace
from skywork_trainer.storage import open_store
from skywork_trainer.tokenizer import LoadedTokenizer, load_tokenizer

_PROGRESS_SECONDS = 5.0
_LINES_THAT_TELL = 1000
Say = Callable[[str], None]


class Passes:
    """What both passes need; every process makes its own."""

    def __init__(self, options: Preparation, digest: str, say: Say) -> None:
        self.options, self.say = options, say
        self.work = Workspace(open_store(options.output), digest)
        self.chunks = cut(find_texts(options.inputs), options.chunk_bytes)
        self._tokenizer: LoadedTokenizer | None = None
        self._evaluation: EvaluationSet | None = None

    @property
    def tokenizer(self) -> LoadedTokenizer:
        """The tokenizer, built at the first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.options.tokenizer_uri)
        return self._tokenizer

    def scan(self, number: int) -> None:
        """Hash every document of a chunk."""
        if self.work.scanned(number):
            return
        hashes: list[int] = []
        signatures = []
        bad = 0
        near = self.options.near_duplicates
        for _, text in islice(self.chunks[number].documents(self.options.text_field), self.options.limit):
            bad += text is None
            self._check_any_text(self.chunks[number], len(hashes) + 1, bad)
            clean = cleaned(text or "", self.options.filters)
            # A document that is left out anyway must not be the one that another counts as a copy of.
            kept = examine(clean, self.options.filters).text if near else clean
            hashes.append(text_hash(clean) if text and kept else 0)
            if near:
                signatures.append(signature(kept or "", near))
        block = np.stack(signatures) if signatures else None
        if near and block is None:
            block = np.empty((0, near.permutations), dtype=np.uint32)
        self.work.keep_scan(number, np.array(hashes, dtype=np.uint64), block)
        self.say(f"{self.chunks[number].file.key}: {len(hashes):,} lines looked at for duplicates")

    def write(self, number: int) -> None:
        """Write a chunk's shards, from where an earlier attempt got to."""
        record = self.work.chunk(number)
        if record.finished:
            return
        chunk, counts, shards = self.chunks[number], record.counts, list(record.shards)
        if shards:
            self.say(f"{chunk.file.key}: goes on after {len(shards)} shards, {counts.lines:,} lines")
        writer = self._writer(number, shards)
        begun = said = time.monotonic()
        taken = record.taken
        for kept, more in self._documents(chunk, counts.lines):
            while taken < len(kept):
                taken += writer.add(kept[taken:], self.options.shard_tokens)
                if writer.tokens >= self.options.shard_tokens:
                    shards.append(writer.publish(self.work.store))
                    writer = self._writer(number, shards)
                    self._keep(number, counts, shards, taken=taken)
            counts, taken = counts.plus(more), 0
            if time.monotonic() - said >= _PROGRESS_SECONDS:
                said = time.monotonic()
                speed = counts.characters / 1e6 / (said - begun)
                self.say(f"{chunk.file.key}: {counts.lines:,} lines, {speed:.1f} M characters/s, {len(shards)} shards")
        if writer.tokens:
            shards.append(writer.publish(self.work.store))
        self._keep(number, counts, shards, finished=True)

    def _documents(self, chunk: Chunk, skip: int) -> Iterator[tuple[list[Kept], Counts]]:
        """Yield batches behind the first `skip` lines, which an earlier attempt has worked off."""
        drops = self.work.drops(chunk.number) if looks_for_duplicates(self.options) else None
        bad = lines = 0
        for batch in examined(chunk, self.options, self._evaluation_set(), drops, skip=skip):
            yield batch.kept, batch.counts
            lines += batch.counts.lines
            bad += batch.counts.removed[BAD_LINE].documents if BAD_LINE in batch.counts.removed else 0
            self._check_any_text(chunk, lines, bad)

    def _check_any_text(self, chunk: Chunk, lines: int, bad: int) -> None:
        """Raise DataError InputInvalid as soon as it is plain that this is no text: not after hours of reading it."""
        if lines == bad >= _LINES_THAT_TELL and self.options.max_bad_share < 1:
            raise DataError(
                "InputInvalid",
                f"{chunk.file.uri}: none of the first {lines:,} lines has text in field {self.options.text_field!r}: "
                "correct the inputs or the text field (--text-field, prepare.textField)",
            )

    def _keep(
        self, number: int, counts: Counts, shards: list[Shard], *, taken: int = 0, finished: bool = False
    ) -> None:
        self.work.keep_chunk(
            number,
            ChunkRecord(
                inputs_sha256=self.work.digest, finished=finished, counts=counts, taken=taken, shards=tuple(shards)
            ),
        )

    def _writer(self, number: int, shards: list[Shard]) -> ShardWriter:
        return ShardWriter(f"shard-{number:05d}-{len(shards):03d}", self.tokenizer)

    def _evaluation_set(self) -> EvaluationSet | None:
        if self._evaluation is None and self.options.decontamination.uris:
            self._evaluation = EvaluationSet(self.options.decontamination, _records(self.options))
        return self._evaluation


def looks_for_duplicates(options: Preparation) -> bool:
    """Return whether a first pass must see every document before the second may keep one."""
    return options.exact_duplicates or options.near_duplicates is not None or bool(options.known)


def check_bad_lines(counts: Counts, options: Preparation, where: str) -> None:
    """Raise DataError InputInvalid when more lines than allowed could not be read."""
    bad = counts.removed.get(BAD_LINE)
    if bad is None or bad.documents <= counts.lines * options.max_bad_share:
        return
    seen = "; ".join(f"{sample.where}: {sample.text[:80]!r}" for sample in bad.samples)
    raise DataError(
        "InputInvalid",
        f"{where}: {bad.documents:,} of {counts.lines:,} lines have no text in field {options.text_field!r}, more "
        f"than the {options.max_bad_share:.1%} that are tolerated. The first: {seen}. Correct the inputs or the "
        "text field, or raise the tolerated share (--max-bad-share, prepare.maxBadShare)",
    )


def _records(options: Preparation) -> Iterator[dict[str, object]]:
    for file in find_texts(options.decontamination.uris):
        if not file.key.endswith(JSON_SUFFIXES):
            raise DataError("InputInvalid", f"evaluation set {file.uri} must be JSON lines")
        for chunk in cut([file], 1 << 62):
            for line, _ in chunk.documents("text"):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise DataError("InputInvalid", f"evaluation set {file.uri}: {error}") from error
                yield record if isinstance(record, dict) else {"text": record}
