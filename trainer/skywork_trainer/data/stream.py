"""Sequence n of a run, read: the catalog says where it lies, the cache brings it, what is ahead is fetched early."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from skywork_trainer.config import OnCorrupt, RunConfig
from skywork_trainer.data.ahead import LookAhead
from skywork_trainer.data.cache import DEFAULT_CAPACITY_BYTES, PartCache
from skywork_trainer.data.catalog import Catalog, CatalogSource
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.fetch import Part, tally
from skywork_trainer.data.reader import PartReader
from skywork_trainer.data.shards import Tokens
from skywork_trainer.storage import requests
from skywork_trainer.traffic import Traffic

_SUBSTITUTES = 8
_log = logging.getLogger(__name__)


class SequenceStream(Catalog):
    """Random access to the sequences of a run, up to the end of the stage that `config` names."""

    def __init__(self, config: RunConfig, cache_dir: Path, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        """Read the indexes; DataError or StorageError when the run cannot be trained on them."""
        super().__init__(config)
        self.cache = PartCache(cache_dir, capacity_bytes=capacity_bytes)
        self._reader = PartReader(self.cache)
        self._ahead: LookAhead | None = None
        self.substituted: dict[int, int] = {}
        """Window read instead, by sequence: of sequences whose own window stays corrupt."""

    def read(self, sequence: int) -> Tokens:
        """Return the sequence's `sequence_length` + 1 tokens: inputs without the last, targets without the first."""
        source, window = self.locate(sequence)
        try:
            return self._reader.read(source, window)
        except DataError as error:
            if error.reason != "ShardCorrupt" or source.on_corrupt is not OnCorrupt.SUBSTITUTE:
                raise
            _log.warning("sequence %d: %s", sequence, error.message)
        return self._substitute(sequence, source, window)

    def advance(self, step: int, sequences_of: Callable[[int], Sequence[int]]) -> None:
        """Say that `step` is about to be read: what the coming ones read is fetched in the background."""
        if self._ahead is None:
            self._ahead = LookAhead(lambda coming: self._parts(sequences_of(coming)))
        self._ahead.advance(step)

    def traffic(self) -> Traffic:
        """Return what this process has fetched and asked of the object store, and how the cache served it."""
        return Traffic(
            fetched_parts=tally.parts,
            fetched_bytes=tally.bytes,
            cache_hits=self.cache.hits,
            cache_misses=self.cache.misses,
            hedged=tally.hedged,
            retried=tally.retried,
            corrupt=tally.corrupt,
            requests=dict(requests),
        )

    def close(self) -> None:
        """Stop fetching ahead and let go of all parts."""
        if self._ahead is not None:
            self._ahead.close()
        self._reader.close()

    def _substitute(self, sequence: int, source: CatalogSource, window: int) -> Tokens:
        """Read another window of the source: which one follows from the window alone, so every world reads the same."""
        size = len(source.windows)
        for attempt in range(1, _SUBSTITUTES + 1):
            other = (window + attempt * (size // (_SUBSTITUTES + 1) + 1)) % size
            try:
                tokens = self._reader.read(source, other)
            except DataError as error:
                if error.reason != "ShardCorrupt":
                    raise
                continue
            _log.warning("sequence %d: window %d of source %r is read instead", sequence, other, source.name)
            self.substituted[sequence] = other
            return tokens
        raise DataError(
            "ShardCorrupt",
            f"source {source.name!r}: {_SUBSTITUTES} windows that were to replace a corrupt one are corrupt too: "
            "restore the objects, or prepare the source again",
        )

    def _parts(self, sequences: Sequence[int]) -> Iterator[tuple[Part, Callable[[], None]]]:
        for sequence in sequences:
            source, window = self.locate(sequence)
            for part in self._reader.parts(source, window):
                yield part, lambda source=source, part=part: self._bring(source, part)  # type: ignore[misc]

    def _bring(self, source: CatalogSource, part: Part) -> None:
        if not self.cache.holds(part):
            self.cache.open(source.store, part).close()
