"""Text to token shards: deterministic whatever the number of workers, resumable at every finished shard.

Shards are cut by documents in input order, so workers only tokenize; the parent alone decides what goes where.
`prepare.json` beside the shards holds how far a preparation got; `index.json` replaces it at the end.
"""

import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import INDEX_FILE, Shard, SourceIndex, read_index, token_dtype
from skywork_trainer.data.texts import TextFile, parse_text
from skywork_trainer.storage import StorageError, Store, open_store
from skywork_trainer.tokenizer import LoadedTokenizer

PROGRESS_FILE = "prepare.json"
DEFAULT_SHARD_TOKENS = 1 << 24
"""32 MiB of uint16: small enough that a block of draws does not fetch much more than it uses."""
_BATCH_LINES = 256
_PROGRESS_SECONDS = 5.0


class _Encoded(NamedTuple):
    """One line, tokenized: no tokens for a bad one."""

    tokens: npt.NDArray[np.uint32]
    text_bytes: int
    text_characters: int


class _Progress(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs_sha256: str
    lines: int = 0
    bad_lines: int = 0
    shards: tuple[Shard, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Make a source of token shards at `output` from text files."""

    inputs: list[TextFile]
    tokenizer: LoadedTokenizer
    output: str
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    """A shard ends with the document that reaches this many tokens."""
    workers: int = 1
    limit: int | None = None
    """Only so many lines of the inputs."""
    report: Callable[[str], None] = print

    def run(self) -> tuple[SourceIndex, bool]:
        """Return the source's index, and whether there was anything to do.

        DataError OutputOccupied when `output` holds, whole or in part, a source made from other inputs.
        """
        store = open_store(self.output)
        digest = self._inputs_digest()
        if store.exists(INDEX_FILE):
            index = read_index("output", self.output)
            if index.inputs_sha256 != digest:
                raise _occupied(self.output, "a source")
            return index, False
        progress = self._progress(store, digest)
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="skywork-prepare-") as folder:
            progress = self._write_shards(store, progress, Path(folder), begun)
        index = SourceIndex(
            dtype=token_dtype(self.tokenizer.vocab_size),
            tokenizer_sha256=self.tokenizer.sha256,
            vocab_size=self.tokenizer.vocab_size,
            inputs_sha256=digest,
            bad_lines=progress.bad_lines,
            shards=progress.shards,
        ).sealed()
        if not index.documents:
            raise DataError("InputInvalid", f"no line of the inputs has a text ({progress.bad_lines} bad lines)")
        store.put(INDEX_FILE, index.model_dump_json(indent=1).encode())
        store.delete(PROGRESS_FILE)
        return index, True

    def _inputs_digest(self) -> str:
        made_from = {
            "inputs": [file.identity for file in self.inputs],
            "tokenizer": self.tokenizer.sha256,
            "shard_tokens": self.shard_tokens,
            "limit": self.limit,
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def _progress(self, store: Store, digest: str) -> _Progress:
        try:
            progress = _Progress.model_validate_json(store.get(PROGRESS_FILE))
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            return _Progress(inputs_sha256=digest)
        except ValidationError as error:
            raise DataError("OutputOccupied", f"{self.output}/{PROGRESS_FILE} is damaged: delete it") from error
        if progress.inputs_sha256 != digest:
            raise _occupied(self.output, f"an unfinished source ({PROGRESS_FILE})")
        self.report(f"resuming after {len(progress.shards)} shards, {progress.lines:,} lines")
        return progress

    def _write_shards(self, store: Store, progress: _Progress, folder: Path, begun: float) -> _Progress:
        lines, bad_lines, shards = progress.lines, progress.bad_lines, list(progress.shards)
        dtype = np.dtype(f"<u{2 if token_dtype(self.tokenizer.vocab_size) == 'uint16' else 4}")
        writer = _ShardWriter(folder, len(shards), dtype)
        read_bytes, reported = 0, begun
        for encoded in self._encoded(progress.lines):
            lines += 1
            if not len(encoded.tokens):
                bad_lines += 1
                continue
            writer.add(encoded)
            read_bytes += encoded.text_bytes
            if writer.tokens >= self.shard_tokens:
                shards.append(writer.publish(store))
                writer = _ShardWriter(folder, len(shards), dtype)
                progress = progress.model_copy(update={"lines": lines, "bad_lines": bad_lines, "shards": tuple(shards)})
                store.put(PROGRESS_FILE, progress.model_dump_json().encode())
            now = time.monotonic()
            if now - reported >= _PROGRESS_SECONDS:
                reported = now
                self.report(f"{lines:,} lines, {read_bytes / 1e6 / (now - begun):.1f} MB/s, {len(shards)} shards done")
        if writer.tokens:
            shards.append(writer.publish(store))
        return progress.model_copy(update={"lines": lines, "bad_lines": bad_lines, "shards": tuple(shards)})

    def _encoded(self, skip: int) -> Iterator[_Encoded]:
        lines = islice((line for file in self.inputs for line in file.lines()), skip, self.limit)
        batches = iter(lambda: list(islice(lines, _BATCH_LINES)), [])
        if self.workers == 1:
            encoder = _Encoder(self.tokenizer)
            for batch in batches:
                yield from encoder.encode(batch)
            return
        # Not forked: the parent may hold threads of the S3 client.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, _start_worker, (self.tokenizer.content,)) as pool:
            waiting: deque[Future[list[_Encoded]]] = deque()
            for batch in batches:
                waiting.append(pool.submit(_encode_in_worker, batch))
                # Bounded, or a fast disk would fill the memory with lines that nobody has tokenized yet.
                if len(waiting) >= 4 * self.workers:
                    yield from waiting.popleft().result()
            for future in waiting:
                yield from future.result()


class _Encoder:
    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._end = tokenizer.end_of_text

    def encode(self, lines: list[bytes]) -> list[_Encoded]:
        texts = [parse_text(line) for line in lines]
        encodings = iter(self._tokenizer.encode_batch_fast([text for text in texts if text], add_special_tokens=False))
        return [
            _Encoded(np.array([*next(encodings).ids, self._end], dtype=np.uint32), len(text.encode()), len(text))
            if text
            else _Encoded(np.empty(0, dtype=np.uint32), 0, 0)
            for text in texts
        ]


_encoder: _Encoder | None = None


def _start_worker(tokenizer: bytes) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = _Encoder(LoadedTokenizer(tokenizer))


def _encode_in_worker(lines: list[bytes]) -> list[_Encoded]:
    assert _encoder is not None
    return _encoder.encode(lines)


@dataclass
class _ShardWriter:
    folder: Path
    number: int
    dtype: np.dtype[np.unsignedinteger[npt.NBitBase]]
    tokens: int = 0
    text_bytes: int = 0
    text_characters: int = 0
    documents: list[npt.NDArray[np.uint32]] = field(default_factory=list)

    def add(self, document: _Encoded) -> None:
        self.documents.append(document.tokens)
        self.tokens += len(document.tokens)
        self.text_bytes += document.text_bytes
        self.text_characters += document.text_characters

    def publish(self, store: Store) -> Shard:
        name = f"shard-{self.number:05d}"
        content = np.concatenate(self.documents).astype(self.dtype).tobytes()
        offsets = np.cumsum([0, *(len(document) for document in self.documents)]).astype("<u8").tobytes()
        for file, data in ((f"{name}.bin", content), (f"{name}.idx", offsets)):
            path = self.folder / file
            path.write_bytes(data)
            store.upload(path, file)
            path.unlink()
        return Shard(
            file=f"{name}.bin",
            tokens=self.tokens,
            documents=len(self.documents),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            offsets_sha256=hashlib.sha256(offsets).hexdigest(),
            text_bytes=self.text_bytes,
            text_characters=self.text_characters,
        )


def _occupied(output: str, what: str) -> DataError:
    return DataError(
        "OutputOccupied",
        f"{output} holds {what} made from other inputs or options: give another --output, or delete what is there",
    )
