"""Sequence n of a run, read: the plan, the order of each source and the shards put together."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skywork_trainer.config import RunConfig, Source
from skywork_trainer.data.cache import DEFAULT_CAPACITY_BYTES, OpenShard, ShardCache
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.mixture import Plan
from skywork_trainer.data.order import Order
from skywork_trainer.data.shards import SourceIndex, Tokens, Windows, read_index
from skywork_trainer.storage import StorageError, open_store
from skywork_trainer.tokenizer import LoadedTokenizer, load_tokenizer

_OPEN_SHARDS = 32


def step_sequences(step: int, config: RunConfig) -> range:
    """Return the sequences of step `step`, whatever the world."""
    return range(step * config.global_batch_sequences, (step + 1) * config.global_batch_sequences)


def rank_sequences(step: int, rank: int, world: int, config: RunConfig) -> list[int]:
    """Return what rank `rank` of `world` reads for a step; ranks differ by one where the world does not divide it."""
    return list(step_sequences(step, config)[rank::world])


class SequenceStream:
    """Random access to the sequences of a run, up to the end of the stage that `config` names."""

    def __init__(self, config: RunConfig, cache_dir: Path, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        """Read tokenizer and indexes; DataError or StorageError when the run cannot be trained on them."""
        self._config = config
        self._plan = Plan(config)
        # A source that only a later stage draws from may not be prepared yet.
        used = {entry.source for stage in config.stages[: config.stage_index + 1] for entry in stage.mixture}
        tokenizer = load_tokenizer(config.tokenizer_uri)
        check_vocabulary(tokenizer, config)
        self.tokenizer_sha256 = tokenizer.sha256
        cache = ShardCache(cache_dir, capacity_bytes=capacity_bytes)
        self._sources = {
            source.name: _OpenSource(source, config, tokenizer, cache)
            for source in config.sources
            if source.name in used
        }
        self._prefetcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    @property
    def fingerprints(self) -> dict[str, str]:
        """Identity of every source's content, for the checkpoint."""
        return {name: source.index.fingerprint for name, source in self._sources.items()}

    def read(self, sequence: int) -> Tokens:
        """Return the sequence's `sequence_length` + 1 tokens: inputs without the last, targets without the first."""
        draw = self._plan.draw(sequence)
        return self._sources[draw.source].read(draw.nth)

    def source_of(self, sequence: int) -> str:
        """Return the name of the source a sequence is drawn from."""
        return self._plan.draw(sequence).source

    def drawn(self, sequence: int) -> dict[str, int]:
        """Return how many sequences of each source the current stage draws before sequence `sequence` of the run."""
        return self._plan.drawn(self._config.stage_index, sequence)

    def past_hash(self, sequence: int) -> str:
        """Return the identity of all that decided the draws [0, sequence).

        A checkpoint keeps it, and a run that computes another on resuming has had its past edited. The plan of stages
        not begun by then takes no part.
        """
        stages = self._config.stages[: self._plan.reached(sequence)]
        used = {entry.source for stage in stages for entry in stage.mixture}
        past = {
            "seed": self._config.seed,
            "sequence_length": self._config.sequence_length,
            "global_batch_sequences": self._config.global_batch_sequences,
            "tokenizer": self.tokenizer_sha256,
            "sources": {name: self._sources[name].index.fingerprint for name in used},
            "stages": [
                [
                    -(-stage.tokens // self._config.global_batch_tokens),
                    [e.model_dump(mode="json") for e in stage.mixture],
                ]
                for stage in stages
            ],
        }
        return hashlib.sha256(json.dumps(past, sort_keys=True).encode()).hexdigest()

    def prefetch(self, sequences: Iterable[int]) -> None:
        """Fetch the shards of coming sequences in the background; those beyond the run's end are left out."""
        self._prefetcher.submit(self._prefetch, tuple(sequences))

    def close(self) -> None:
        """Stop prefetching and let go of all shards."""
        self._prefetcher.shutdown(cancel_futures=True)
        for source in self._sources.values():
            source.close()

    def _prefetch(self, sequences: tuple[int, ...]) -> None:
        # Whatever fails here fails again, in the foreground, when the sequence is read.
        with suppress(DataError, StorageError, OSError, IndexError, KeyError):
            for sequence in sequences:
                draw = self._plan.draw(sequence)
                self._sources[draw.source].fetch(draw.nth)


class ValidationSet:
    """The first `windows` sequences of a held-out domain: the same for every world and every step."""

    tokens: Tokens
    """[windows, sequence_length + 1]; a short last window of a shard is filled up with zeros."""
    mask: npt.NDArray[np.bool_]
    """[windows, sequence_length]: which targets count."""

    def __init__(self, domain: Source, config: RunConfig, cache_dir: Path) -> None:
        """Read the domain's windows; DataError or StorageError when it cannot be measured with the run's tokenizer."""
        self.name = domain.name
        tokenizer = load_tokenizer(config.tokenizer_uri)
        index = read_index(domain.name, domain.uri)
        check_tokenizer(domain.name, index, tokenizer)
        self.fingerprint = index.fingerprint
        self.tokens, self.mask = _first_windows(
            domain, index, ShardCache(cache_dir), config.validation.windows, config.sequence_length
        )
        if not len(self.tokens):
            raise DataError("SourceInvalid", f"validation domain {domain.name!r}: {domain.uri} holds no text")


def check_vocabulary(tokenizer: LoadedTokenizer, config: RunConfig) -> None:
    """Raise DataError VocabularyTooLarge when the model has no embedding for some token."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise DataError(
            "VocabularyTooLarge",
            f"the tokenizer at {config.tokenizer_uri} has {tokenizer.vocab_size} tokens, model.vocabSize is "
            f"{config.model.vocab_size}: raise model.vocabSize to at least {tokenizer.vocab_size}, or use the "
            "tokenizer that the model was sized for",
        )


def check_tokenizer(name: str, index: SourceIndex, tokenizer: LoadedTokenizer) -> None:
    """Raise DataError TokenizerMismatch when a source was prepared with another tokenizer."""
    if index.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            "TokenizerMismatch",
            f"source {name!r} was prepared with tokenizer {index.tokenizer_sha256[:12]}, the run uses "
            f"{tokenizer.sha256[:12]}: prepare the source with the run's tokenizer, or correct tokenizer.uri",
        )


class _OpenSource:
    """One source: its n-th draw, and the shards it reads from now."""

    def __init__(self, source: Source, config: RunConfig, tokenizer: LoadedTokenizer, cache: ShardCache) -> None:
        self.index = read_index(source.name, source.uri)
        check_tokenizer(source.name, self.index, tokenizer)
        self._store = open_store(source.uri)
        self._cache = cache
        self._windows = Windows(self.index, config.sequence_length)
        if not len(self._windows):
            raise DataError(
                "SourceInvalid",
                f"source {source.name!r}: no shard at {source.uri} holds a sequence of {config.sequence_length} tokens"
                ": prepare more text, or lower batch.sequenceLength",
            )
        self._order = Order(seed=config.seed, source=source.name, size=len(self._windows))
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, nth: int) -> Tokens:
        shard, start = self._locate(nth)
        with self._lock:
            return self._opened(shard).read(start, self._windows.sequence_length + 1)

    def fetch(self, nth: int) -> None:
        shard, _ = self._locate(nth)
        if shard not in self._open:
            # Outside the lock: reading what is here already must not wait for the network.
            self._cache.open(self._store, self.index.shards[shard], self.index.numpy_dtype).close()

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _locate(self, nth: int) -> tuple[int, int]:
        return self._windows.locate(self._order.locate(nth)[1])

    def _opened(self, shard: int) -> OpenShard:
        if shard not in self._open:
            self._open[shard] = self._cache.open(self._store, self.index.shards[shard], self.index.numpy_dtype)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return self._open[shard]


def _first_windows(
    domain: Source, index: SourceIndex, cache: ShardCache, windows: int, sequence_length: int
) -> tuple[Tokens, npt.NDArray[np.bool_]]:
    store = open_store(domain.uri)
    tokens = np.zeros((windows, sequence_length + 1), dtype=np.int64)
    mask = np.zeros((windows, sequence_length), dtype=np.bool_)
    filled = 0
    for shard in index.shards:
        starts = range(0, shard.tokens - 1, sequence_length)[: windows - filled]
        if not starts:
            continue
        opened = cache.open(store, shard, index.numpy_dtype)
        for start in starts:
            window = opened.read(start, min(sequence_length + 1, shard.tokens - start))
            tokens[filled, : len(window)] = window
            mask[filled, : len(window) - 1] = True
            filled += 1
        opened.close()
    return tokens[:filled], mask[:filled]
