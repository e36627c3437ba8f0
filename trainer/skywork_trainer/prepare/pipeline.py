"""Text to token shards: the same shards whatever processes and pods share the work, whenever they are killed.

Inputs are cut into chunks; every chunk's shards follow from the inputs and options alone. Whoever finishes the last
chunk of a pass does what follows it, so nobody waits for anybody: a pod that ends early leaves no gap, two that end
together write the same bytes.
"""

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from skywork_trainer.config import Preparation
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import (
    DOCUMENTS_FILE,
    INDEX_FILE,
    PART_BYTES,
    SourceIndex,
    read_index,
    token_dtype,
)
from skywork_trainer.prepare.examination import BAD_LINE, Drops, duplicates
from skywork_trainer.prepare.near import NearDuplicateFilter
from skywork_trainer.prepare.passes import Passes, Say, check_bad_lines, looks_for_duplicates
from skywork_trainer.prepare.report import PAGE_FILE, REPORT_FILE, page, report
from skywork_trainer.prepare.shardwriter import hashes_key
from skywork_trainer.prepare.texts import find_texts
from skywork_trainer.prepare.work import Counts, Hashes, inputs_digest, occupied
from skywork_trainer.storage import StorageError, open_store
from skywork_trainer.tokenizer import load_tokenizer


class Phase(StrEnum):
    """What one call does."""

    ALL = "all"
    SCAN = "scan"
    """Hash the documents and find out which occur more than once."""
    WRITE = "write"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which chunks this call works on: those whose number leaves `part` when divided by `parts`."""

    part: int = 0
    parts: int = 1

    def of(self, chunks: int) -> list[int]:
        """Return the numbers of this share's chunks."""
        return list(range(self.part, chunks, self.parts))


def prepare(
    options: Preparation, *, phase: Phase = Phase.ALL, share: Share = Share(), workers: int = 1, say: Say = print
) -> SourceIndex | None:
    """Return the source's index, or None while other parts of it are missing.

    DataError OutputOccupied when the output holds, whole or in part, a source made from something else.
    """
    digest = _digest(options)
    finished = _finished(options, digest)
    if finished is not None:
        say(f"{options.output}: made from these inputs already, nothing to do")
        return finished
    passes = Passes(options, digest, say)
    numbers = share.of(len(passes.chunks))
    say(f"{len(passes.chunks)} chunks of input, {len(numbers)} of them here, {workers} workers")
    try:
        if phase is not Phase.WRITE and looks_for_duplicates(options):
            _for_each(Passes.scan, passes, numbers, workers)
            _resolve(passes)
        if phase is not Phase.SCAN:
            if looks_for_duplicates(options) and not passes.work.resolved():
                raise DataError(
                    "InputMissing", f"{options.output}: not all documents were looked at: run --phase scan first"
                )
            _for_each(Passes.write, passes, numbers, workers)
            return _finish(passes)
    except StorageError as error:
        # Another part may just have finished the source and cleared what this one was about to read.
        if error.reason != "NotFound":
            raise
        finished = _finished(options, digest)
        if finished is None:
            raise
        return finished
    return None


def _digest(options: Preparation) -> str:
    files = find_texts([*options.inputs])
    evaluation = find_texts(options.decontamination.uris) if options.decontamination.uris else []
    known = [read_index(uri, uri).fingerprint for uri in options.known]
    return inputs_digest(options, [*files, *evaluation], load_tokenizer(options.tokenizer_uri).sha256, known)


def _finished(options: Preparation, digest: str) -> SourceIndex | None:
    if not open_store(options.output).exists(INDEX_FILE):
        return None
    index = read_index("output", options.output)
    if index.inputs_sha256 != digest:
        raise occupied(options.output, "a source")
    return index


def _for_each(work: Callable[[Passes, int], None], passes: Passes, numbers: list[int], workers: int) -> None:
    processes = min(workers, len(numbers))
    # The tokenizer has threads of its own: what processes leave over of the workers goes to them.
    threads = str(max(workers // max(processes, 1), 1))
    os.environ.update(RAYON_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="true" if threads != "1" else "false")
    if processes <= 1:
        for number in numbers:
            work(passes, number)
        return
    begun, done = time.monotonic(), 0
    # Not forked: the parent may hold threads of the S3 client.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (passes.options, passes.work.digest)) as pool:
        futures = [pool.submit(_in_worker, work.__name__, number) for number in numbers]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                passes.say(f"{done} of {len(numbers)} chunks, {time.monotonic() - begun:.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_passes: Passes | None = None


def _start_worker(options: Preparation, digest: str) -> None:
    global _passes
    _passes = Passes(options, digest, lambda line: print(line, flush=True))


def _in_worker(work: str, number: int) -> None:
    assert _passes is not None
    getattr(_passes, work)(number)


def _resolve(passes: Passes) -> None:
    """Once every document is hashed, decide which are duplicates: the first in the order of the inputs stays."""
    work, options = passes.work, passes.options
    if work.resolved():
        return
    missing = [chunk.number for chunk in passes.chunks if not work.scanned(chunk.number)]
    if missing:
        passes.say(f"{len(missing)} chunks are still looked at elsewhere")
        return
    hashes = [work.hashes(chunk.number) for chunk in passes.chunks]
    drops = (
        duplicates(hashes, _known(options))
        if options.exact_duplicates or options.known
        else [np.zeros(len(chunk), dtype=np.uint8) for chunk in hashes]
    )
    if options.near_duplicates:
        drops = _near(passes, hashes, drops)
    work.keep_drops(drops)


def _known(options: Preparation) -> Hashes:
    found = [np.frombuffer(open_store(uri).get(DOCUMENTS_FILE), dtype="<u8") for uri in options.known]
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint64)


def _near(passes: Passes, hashes: Iterable[Hashes], drops: list[Drops]) -> list[Drops]:
    near = passes.options.near_duplicates
    assert near is not None
    seen = NearDuplicateFilter(near)
    decided = []
    for chunk, known, dropped in zip(passes.chunks, hashes, drops, strict=True):
        signatures = passes.work.signatures(chunk.number, near.permutations)
        told = dropped.copy()
        for line in np.flatnonzero((dropped == 0) & (known != 0)):
            if seen.seen(signatures[line]):
                told[line] = 2
        decided.append(told)
    return decided


def _finish(passes: Passes) -> SourceIndex | None:
    """Once every chunk is written, put the index over them: from then on there is a source."""
    work, options = passes.work, passes.options
    records = [work.chunk(chunk.number) for chunk in passes.chunks]
    missing = sum(not record.finished for record in records)
    if missing:
        passes.say(f"{missing} chunks are still written elsewhere")
        return None
    counts = Counts()
    for record in records:
        counts = counts.plus(record.counts)
    check_bad_lines(counts, options, "the inputs")
    shards = tuple(shard for record in records for shard in record.shards)
    if not shards:
        raise DataError("InputInvalid", f"no document is left of {counts.lines:,} lines: {_why(counts)}")
    documents = b"".join(work.store.get(hashes_key(shard)) for shard in shards)
    tokenizer = passes.tokenizer
    index = SourceIndex(
        dtype=token_dtype(tokenizer.vocab_size),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        part_bytes=PART_BYTES,
        inputs_sha256=work.digest,
        documents_sha256=hashlib.sha256(documents).hexdigest(),
        bad_lines=counts.removed[BAD_LINE].documents if BAD_LINE in counts.removed else 0,
        shards=shards,
    ).sealed()
    told = report(options, index, counts)
    work.store.put(DOCUMENTS_FILE, documents)
    work.store.put(REPORT_FILE, told.model_dump_json(indent=1).encode())
    work.store.put(PAGE_FILE, page(told).encode())
    work.store.put(INDEX_FILE, index.model_dump_json(indent=1).encode())
    work.clear()
    return index


def _why(counts: Counts) -> str:
    return ", ".join(f"{reason} {removed.documents:,}" for reason, removed in sorted(counts.removed.items()))
