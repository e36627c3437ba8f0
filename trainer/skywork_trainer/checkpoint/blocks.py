"""A checkpoint block by block, each read once and verified: for tools that go over all of it, or one kind of array.

Engines read spans (`files.FragmentReader`); a tool that walked parameters in order would, in checkpoints of many ranks,
fetch every block many times over for the small pieces in it. So tools walk files, and put each piece where it belongs.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.manifest import Manifest, Piece, RankFile, prefix
from skywork_trainer.storage import StorageError, Store

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8
"""Blocks in flight: with blocks of 8 MiB, 64 MiB of memory."""
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Block:
    """Bytes [start, start + length) of a file, and the pieces that lie in them, at least in part."""

    file: RankFile
    number: int
    start: int
    length: int
    pieces: tuple[Piece, ...]


def blocks(manifest: Manifest, wanted: Callable[[Piece], bool] | None = None) -> Iterator[Block]:
    """Yield every block, file by file; with `wanted` only those in which such a piece lies, and only such pieces."""
    of_file: dict[int, list[Piece]] = {}
    for piece in manifest.pieces:
        if wanted is None or wanted(piece):
            of_file.setdefault(piece.file, []).append(piece)
    for index, file in enumerate(manifest.files):
        coming = deque(sorted(of_file.get(index, []), key=lambda piece: piece.offset))
        inside: list[Piece] = []
        for number, start in enumerate(range(0, file.size, file.block_bytes)):
            end = min(start + file.block_bytes, file.size)
            inside = [piece for piece in inside if _end(piece) > start]
            while coming and coming[0].offset < end:
                inside.append(coming.popleft())
            if inside or wanted is None:
                yield Block(file, number, start, end - start, tuple(inside))


def read_block(store: Store, manifest: Manifest, block: Block) -> bytearray:
    """Return the block's bytes; CheckpointCorrupt unless they are those that were written."""
    key = prefix(manifest.id) + block.file.name
    try:
        data = store.get_range(key, block.start, block.length)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        raise CheckpointCorrupt(f"{key} is gone") from error
    if len(data) != block.length:
        raise CheckpointCorrupt(f"{key} ends {block.length - len(data)} bytes early")
    if block.number >= len(block.file.sha256) or hashlib.sha256(data).hexdigest() != block.file.sha256[block.number]:
        end = block.start + block.length
        raise CheckpointCorrupt(f"{key} differs from what was written, in bytes {block.start} to {end}")
    return bytearray(data)  # torch wants memory it may write to


def elements(block: Block, data: bytearray, piece: Piece) -> tuple[int, Tensor]:
    """Return the part of `piece` that lies in the block, fp32, and the number of its first element in the parameter."""
    low = max(piece.offset, block.start)
    high = min(_end(piece), block.start + block.length)
    if (low - piece.offset) % _FLOAT_BYTES or (high - low) % _FLOAT_BYTES:
        raise CheckpointCorrupt(f"{piece.name} in {block.file.name}: a block ends inside a number")
    first = piece.start + (low - piece.offset) // _FLOAT_BYTES
    count = (high - low) // _FLOAT_BYTES
    return first, torch.frombuffer(data, dtype=torch.float32, offset=low - block.start, count=count)


def in_parallel(function: Callable[[T], R], items: Iterable[T], *, threads: int = THREADS) -> Iterator[R]:
    """Yield function(item) in the items' order, at most `threads` begun and not yet taken: memory stays bounded."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="blocks") as pool:
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) >= threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _end(piece: Piece) -> int:
    return piece.offset + piece.length * _FLOAT_BYTES
