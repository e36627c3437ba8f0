"""One rank's file written and any rank's byte ranges read back, verified."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.manifest import Manifest, Piece, RankFile, prefix
from skywork_trainer.engine import KINDS, Fragment, Span
from skywork_trainer.storage import StorageError, Store

BLOCK_BYTES = 8 << 20
_FLOAT_BYTES = 4
_CACHED_BLOCKS = 8


def write_rank_file(
    path: Path, fragments: Sequence[Fragment], *, file_index: int, block_bytes: int = BLOCK_BYTES
) -> tuple[RankFile, list[Piece]]:
    """Write the fragments as a safetensors file; return its description and where each array lies in it.

    The three arrays of a fragment lie side by side: a reader of another world size then reads few, long ranges.
    """
    header: dict[str, object] = {}
    pieces, data_bytes = [], 0
    for fragment in fragments:
        span = fragment.span
        for kind in KINDS:
            end = data_bytes + span.length * _FLOAT_BYTES
            header[f"{span.name}@{span.start}.{kind}"] = {
                "dtype": "F32",
                "shape": [span.length],
                "data_offsets": [data_bytes, end],
            }
            pieces.append((span, kind, data_bytes))
            data_bytes = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors wants its data aligned
    start = 8 + len(text)
    digests = _BlockDigests(block_bytes)
    with path.open("wb") as file:
        digests.write(file.write, len(text).to_bytes(8, "little") + text)
        for fragment in fragments:
            for array in fragment.arrays():
                digests.write(file.write, array.detach().cpu().contiguous().numpy().data.cast("B"))
    described = RankFile(
        name=f"rank-{file_index:05d}.safetensors",
        size=start + data_bytes,
        block_bytes=block_bytes,
        sha256=tuple(digests.finish()),
    )
    located = [
        Piece(name=s.name, kind=kind, start=s.start, length=s.length, file=file_index, offset=start + offset)
        for s, kind, offset in pieces
    ]
    return described, located


class FragmentReader:
    """Reads spans of any layout out of a checkpoint of any other; an engine's `Reader`.

    A span that cannot be read as it was written comes back as zeros and `corruption` says why: engines go on to their
    collectives, and the ranks then agree on what to do, where an exception on one rank would leave the others waiting.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for piece in sorted(manifest.pieces, key=lambda piece: piece.start):
            self._pieces.setdefault((piece.name, piece.kind), []).append(piece)
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.corruption: str | None = None
        self.bytes_read = 0

    def __call__(self, span: Span) -> tuple[Tensor, Tensor, Tensor]:
        """Return master and moments of `span`."""
        try:
            master, first, second = (self._array(span, kind) for kind in KINDS)
        except CheckpointCorrupt as error:
            self.corruption = self.corruption or str(error)
            return torch.zeros(span.length), torch.zeros(span.length), torch.zeros(span.length)
        return master, first, second

    def _array(self, span: Span, kind: str) -> Tensor:
        out, filled = torch.empty(span.length), 0
        for piece in self._pieces.get((span.name, kind), []):
            low, high = max(piece.start, span.start), min(piece.start + piece.length, span.start + span.length)
            if low >= high:
                continue
            offset = piece.offset + (low - piece.start) * _FLOAT_BYTES
            data = self._bytes(piece.file, offset, (high - low) * _FLOAT_BYTES)
            out[low - span.start : high - span.start] = torch.frombuffer(data, dtype=torch.float32)
            filled += high - low
        if filled != span.length:
            raise CheckpointCorrupt(f"{self._manifest.id} holds {filled} of {span.length} elements of {span.name}")
        return out

    def _bytes(self, file: int, offset: int, length: int) -> bytearray:
        size = self._manifest.files[file].block_bytes
        first, last = offset // size, (offset + length - 1) // size
        # Copied block by block into one buffer: joining slices would hold a large array twice.
        out, at = bytearray(length), 0
        for block in range(first, last + 1):
            skip = offset + at - block * size
            part = memoryview(self._block(file, block))[skip : skip + length - at]
            out[at : at + len(part)] = part
            at += len(part)
        return out

    def _block(self, file: int, block: int) -> bytes:
        if (file, block) in self._blocks:
            self._blocks.move_to_end((file, block))
            return self._blocks[file, block]
        described = self._manifest.files[file]
        start = block * described.block_bytes
        length = min(described.block_bytes, described.size - start)
        key = prefix(self._manifest.id) + described.name
        try:
            data = self._store.get_range(key, start, length)
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            raise CheckpointCorrupt(f"{key} is gone") from error
        self.bytes_read += len(data)
        if len(data) != length:
            raise CheckpointCorrupt(f"{key} ends {length - len(data)} bytes early")
        if hashlib.sha256(data).hexdigest() != described.sha256[block]:
            raise CheckpointCorrupt(f"{key} differs from what was written, in bytes {start} to {start + length}")
        self._blocks[file, block] = data
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return data


class _BlockDigests:
    """sha256 of every `block_bytes` of a stream, taken while it is written."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes, self._left = block_bytes, block_bytes
        self._current, self._done = hashlib.sha256(), list[str]()

    def write(self, sink: Callable[[bytes | memoryview], object], data: bytes | memoryview) -> None:
        sink(data)
        view = memoryview(data)
        while len(view):
            part = view[: self._left]
            self._current.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            if not self._left:
                self._done.append(self._current.hexdigest())
                self._current, self._left = hashlib.sha256(), self._block_bytes

    def finish(self) -> list[str]:
        if self._left < self._block_bytes:
            self._done.append(self._current.hexdigest())
        return self._done
