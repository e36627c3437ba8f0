"""Windows of tokens out of cached parts: what lies where in a source's files, and which parts are open."""

import threading
from collections import OrderedDict

import numpy as np

from skywork_trainer.data.cache import OpenPart, PartCache
from skywork_trainer.data.catalog import CatalogSource
from skywork_trainer.data.fetch import Part
from skywork_trainer.data.shards import Shard, SourceIndex, Tokens, digests_part, part_at
from skywork_trainer.storage import Store

_OPEN_PARTS = 64
_KEPT_DIGESTS = 4096


class PartReader:
    """Reads tokens of shards through the node's cache; safe to use from several threads."""

    def __init__(self, cache: PartCache) -> None:
        self._cache = cache
        self._open: OrderedDict[str, OpenPart] = OrderedDict()
        self._digests: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, source: CatalogSource, window: int) -> Tokens:
        """Return the window's `sequence_length` + 1 tokens."""
        number, first = source.windows.locate(window)
        shard = source.index.shards[number]
        return self.tokens(source.store, source.index, shard, first, source.windows.sequence_length + 1)

    def tokens(self, store: Store, index: SourceIndex, shard: Shard, first: int, count: int) -> Tokens:
        """Return `count` tokens of a shard from token `first`."""
        width = index.numpy_dtype.itemsize
        start, end = first * width, (first + count) * width
        pieces = []
        for number in range(start // index.part_bytes, -(-end // index.part_bytes)):
            part = self.part(store, index, shard, number)
            begin = max(start - part.start, 0)
            pieces.append(self._read(store, part, begin, min(end - part.start, part.length) - begin))
        return np.frombuffer(b"".join(pieces), dtype=index.numpy_dtype).astype(np.int64)

    def parts(self, source: CatalogSource, window: int) -> list[Part]:
        """Return the parts that a window lies in."""
        number, first = source.windows.locate(window)
        index, shard = source.index, source.index.shards[number]
        width = index.numpy_dtype.itemsize
        end = (first + source.windows.sequence_length + 1) * width
        numbers = range(first * width // index.part_bytes, -(-end // index.part_bytes))
        return [self.part(source.store, index, shard, n) for n in numbers]

    def part(self, store: Store, index: SourceIndex, shard: Shard, number: int) -> Part:
        """Return part `number` of a shard, with its digest."""
        return part_at(shard, number, index.part_bytes, self._digests_of(store, index, shard))

    def close(self) -> None:
        """Let go of all parts."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _read(self, store: Store, part: Part, begin: int, length: int) -> bytes:
        with self._lock:
            found = self._open.get(part.sha256)
            if found is not None:
                self._open.move_to_end(part.sha256)
                return found.read(begin, length)
        # Outside the lock: what is here already must not wait for the network.
        opened = self._cache.open(store, part)
        with self._lock:
            twin = self._open.pop(part.sha256, None)
            if twin is not None:
                twin.close()
            self._open[part.sha256] = opened
            if len(self._open) > _OPEN_PARTS:
                self._open.popitem(last=False)[1].close()
            return opened.read(begin, length)

    def _digests_of(self, store: Store, index: SourceIndex, shard: Shard) -> bytes:
        with self._lock:
            known = self._digests.get(shard.parts_sha256)
        if known is not None:
            return known
        part = digests_part(shard, index.part_bytes)
        opened = self._cache.open(store, part)
        content = opened.read(0, part.length)
        opened.close()
        with self._lock:
            self._digests[shard.parts_sha256] = content
            if len(self._digests) > _KEPT_DIGESTS:
                self._digests.popitem(last=False)
        return content
