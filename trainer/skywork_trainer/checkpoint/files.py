"""One rank's file written and any rank's byte ranges read back, verified."""

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.layout import file_name, lay_out
from skywork_trainer.checkpoint.local import local_file
from skywork_trainer.checkpoint.manifest import Manifest, Piece, RankFile, prefix
from skywork_trainer.checkpoint.saver import BLOCK_BYTES
from skywork_trainer.engine import KINDS, Fragment, Span
from skywork_trainer.storage import StorageError, Store

THREADS = 8
_AHEAD_BLOCKS = 12
"""Blocks fetched before they are asked for."""
_HELD_BLOCKS = 12
"""Blocks kept after they were asked for, because more is expected of them or may be."""
_FLOAT_BYTES = 4


def write_rank_file(
    path: Path, fragments: Sequence[Fragment], *, file_index: int, block_bytes: int = BLOCK_BYTES
) -> tuple[RankFile, list[Piece]]:
    """Write the fragments as a safetensors file; return its description and where each array lies in it."""
    layout = lay_out([fragment.span for fragment in fragments], file_index=file_index)
    with path.open("wb") as file:
        file.write(layout.header)
        for fragment in fragments:
            for array in fragment.arrays():
                file.write(array.detach().cpu().contiguous().numpy().data.cast("B"))
    digests = []
    with path.open("rb") as file:
        while block := file.read(block_bytes):
            digests.append(hashlib.sha256(block).hexdigest())
    described = RankFile(name=file_name(file_index), size=layout.size, block_bytes=block_bytes, sha256=tuple(digests))
    return described, list(layout.pieces)


_Key = tuple[int, int]
"""A file's number and a block's in it."""


class FragmentReader:
    """Reads spans of any layout out of a checkpoint of any other; an engine's `Reader`.

    A span that cannot be read as it was written comes back as zeros and `corruption` says why: engines go on to their
    collectives, and the ranks then agree on what to do, where an exception on one rank would leave the others waiting.

    Blocks come from the node's own disk where it has them as they were written (`local`), else from the store. Those
    of the spans that were said to come (`expect`) are fetched ahead in parallel, each once; memory is bounded by
    `_AHEAD_BLOCKS` and `_HELD_BLOCKS` of at most 64 MiB, 8 MiB as we write them.
    """

    def __init__(self, store: Store, manifest: Manifest, *, local: Path | None = None) -> None:
        self._store, self._manifest, self._local = store, manifest, local
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for piece in sorted(manifest.pieces, key=lambda piece: piece.start):
            self._pieces.setdefault((piece.name, piece.kind), []).append(piece)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="restore")
        self._coming: list[_Key] = []
        self._next = 0
        self._uses: Counter[_Key] = Counter()
        self._fetched: dict[_Key, Future[tuple[bytes, bool]]] = {}
        self._held: OrderedDict[_Key, bytes] = OrderedDict()
        self.corruption: str | None = None
        self.bytes_read = 0
        """From the store."""
        self.local_bytes_read = 0

    def expect(self, spans: Sequence[Span]) -> None:
        """Begin to fetch what these spans lie in; they are then best asked for in this order."""
        for span in spans:
            for kind in KINDS:
                for piece, low, high in self._overlapping(span, kind):
                    for key in self._keys(piece, low, high):
                        self._uses[key] += 1
                        if self._uses[key] == 1:
                            self._coming.append(key)
        self._fetch_ahead()

    def close(self) -> None:
        """Fetch nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, span: Span) -> tuple[Tensor, Tensor, Tensor]:
        """Return master and moments of `span`."""
        try:
            master, first, second = (self._array(span, kind) for kind in KINDS)
        except CheckpointCorrupt as error:
            self.corruption = self.corruption or str(error)
            return torch.zeros(span.length), torch.zeros(span.length), torch.zeros(span.length)
        return master, first, second

    def _overlapping(self, span: Span, kind: str) -> list[tuple[Piece, int, int]]:
        """Return the pieces that hold some of the span, and which of its elements."""
        end, found = span.start + span.length, []
        for piece in self._pieces.get((span.name, kind), []):
            low, high = max(piece.start, span.start), min(piece.start + piece.length, end)
            if low < high:
                found.append((piece, low, high))
        return found

    def _keys(self, piece: Piece, low: int, high: int) -> list[_Key]:
        size = self._manifest.files[piece.file].block_bytes
        first = piece.offset + (low - piece.start) * _FLOAT_BYTES
        last = piece.offset + (high - piece.start) * _FLOAT_BYTES - 1
        return [(piece.file, block) for block in range(first // size, last // size + 1)]

    def _array(self, span: Span, kind: str) -> Tensor:
        out, filled = torch.empty(span.length), 0
        for piece, low, high in self._overlapping(span, kind):
            offset = piece.offset + (low - piece.start) * _FLOAT_BYTES
            target = out[low - span.start : high - span.start].numpy().data.cast("B")
            self._fill(target, self._keys(piece, low, high), offset)
            filled += high - low
        if filled != span.length:
            raise CheckpointCorrupt(f"{self._manifest.id} holds {filled} of {span.length} elements of {span.name}")
        return out

    def _fill(self, target: memoryview, keys: list[_Key], offset: int) -> None:
        """Fill `target` with what begins at `offset` of the file: straight from the blocks, a copy costs as much."""
        at = 0
        for place, key in enumerate(keys):
            for later in keys[place : place + THREADS]:
                self._submit(later)
            skip = offset + at - key[1] * self._manifest.files[key[0]].block_bytes
            part = memoryview(self._block(key))[skip : skip + len(target) - at]
            target[at : at + len(part)] = part
            at += len(part)

    def _block(self, key: _Key) -> bytes:
        self._submit(key)
        future = self._fetched.pop(key, None)
        if future is None:
            data = self._held.pop(key)
        else:
            data, from_node = future.result()
            self.local_bytes_read += len(data) * from_node
            self.bytes_read += len(data) * (not from_node)
        self._uses[key] -= 1
        if self._uses[key]:
            self._held[key] = data
            if len(self._held) > _HELD_BLOCKS:
                self._held.popitem(last=False)
        self._fetch_ahead()
        return data

    def _submit(self, key: _Key) -> None:
        if key not in self._held and key not in self._fetched:
            self._fetched[key] = self._pool.submit(self._fetch, key)

    def _fetch_ahead(self) -> None:
        while self._next < len(self._coming) and len(self._fetched) < _AHEAD_BLOCKS:
            key = self._coming[self._next]
            self._next += 1
            if self._uses[key] > 0:
                self._submit(key)

    def _fetch(self, key: _Key) -> tuple[bytes, bool]:
        """Return a block as it was written, and whether it came from the node's disk."""
        file, block = key
        described = self._manifest.files[file]
        start = block * described.block_bytes
        length = min(described.block_bytes, described.size - start)
        found = self._from_node(described, start, length, described.sha256[block])
        if found is not None:
            return found, True
        return self._from_store(described, start, length, described.sha256[block]), False

    def _from_node(self, file: RankFile, start: int, length: int, digest: str) -> bytes | None:
        if self._local is None:
            return None
        try:
            with local_file(self._local, self._manifest.id, file.name).open("rb") as opened:
                data = os.pread(opened.fileno(), length, start)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            return None
        return data

    def _from_store(self, file: RankFile, start: int, length: int, digest: str) -> bytes:
        key = prefix(self._manifest.id) + file.name
        for last in (False, True):
            try:
                data = self._store.get_range(key, start, length)
            except StorageError as error:
                if error.reason != "NotFound":
                    raise
                raise CheckpointCorrupt(f"{key} is gone") from error
            if hashlib.sha256(data).hexdigest() == digest:
                break
            # Asked for twice: what a network spoils is no reason to give a checkpoint up.
            if last and len(data) != length:
                raise CheckpointCorrupt(f"{key} ends {length - len(data)} bytes early")
            if last:
                raise CheckpointCorrupt(f"{key} differs from what was written, in bytes {start} to {start + length}")
        return data
