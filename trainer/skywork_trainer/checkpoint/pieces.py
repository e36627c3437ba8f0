"""Elements of one array of a checkpoint by exact byte ranges: for tools, which can do without a check of the hashes."""

import torch
from torch import Tensor

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.manifest import Manifest, Piece, prefix
from skywork_trainer.storage import StorageError, Store

_FLOAT_BYTES = 4


class PieceReader:
    """Reads elements of one array from wherever they lie; safe to call from several threads.

    No block is read whole for the sake of its hash, so what comes back is what is stored, damaged or not.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for piece in manifest.pieces:
            self._pieces.setdefault((piece.name, piece.kind), []).append(piece)

    def __call__(self, name: str, kind: str, start: int, length: int) -> Tensor:
        """Return elements [start, start + length) of an array, fp32; CheckpointCorrupt where some are not there."""
        out, filled = torch.empty(length), 0
        for piece in self._pieces.get((name, kind), []):
            low, high = max(piece.start, start), min(piece.start + piece.length, start + length)
            if low < high:
                offset = piece.offset + (low - piece.start) * _FLOAT_BYTES
                data = self._bytes(piece.file, offset, (high - low) * _FLOAT_BYTES)
                out[low - start : high - start] = torch.frombuffer(data, dtype=torch.float32)
                filled += high - low
        if filled != length:
            raise CheckpointCorrupt(f"{self._manifest.id} holds {filled} of {length} elements of {name} {kind}")
        return out

    def _bytes(self, file: int, offset: int, length: int) -> bytearray:
        key = prefix(self._manifest.id) + self._manifest.files[file].name
        try:
            data = self._store.get_range(key, offset, length)
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            raise CheckpointCorrupt(f"{key} is gone") from error
        if len(data) != length:
            raise CheckpointCorrupt(f"{key} ends {length - len(data)} bytes early")
        return bytearray(data)
