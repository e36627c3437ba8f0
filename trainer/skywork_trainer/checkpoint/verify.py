"""Whether a checkpoint is whole: every byte as it was written, every element there once, every number finite."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.blocks import Block, blocks, elements, in_parallel, read_block
from skywork_trainer.checkpoint.manifest import Manifest, prefix
from skywork_trainer.engine import KINDS
from skywork_trainer.model import Decoder
from skywork_trainer.storage import StorageError, Store

_MOST_PROBLEMS = 100
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a checkpoint, the first 100 things of it; nothing if it can be relied on."""

    checkpoint: str
    bytes_read: int
    problems: tuple[str, ...]


def verify(store: Store, manifest: Manifest, progress: Progress = lambda done, total: None) -> Verdict:
    """Read every byte of the checkpoint, several blocks at once in bounded memory, and return what is wrong with it.

    Raises StorageError when the store fails; an object that is gone is damage, not a failure.
    """
    problems = [*array_problems(manifest), *_wrong_sizes(store, manifest)]
    total, done = sum(file.size for file in manifest.files), 0

    def examine(block: Block) -> tuple[int, list[str]]:
        try:
            return block.length, _not_finite(block, read_block(store, manifest, block))
        except CheckpointCorrupt as error:
            return 0, [str(error)]

    read = 0
    for block, (length, found) in zip(blocks(manifest), in_parallel(examine, blocks(manifest)), strict=True):
        read, done = read + length, done + block.length
        problems += found[: max(_MOST_PROBLEMS - len(problems), 0)]
        progress(done, total)
    return Verdict(manifest.id, read, tuple(dict.fromkeys(problems))[:_MOST_PROBLEMS])


def array_problems(manifest: Manifest) -> Iterator[str]:
    """Yield each array that is not the model's, in name or size; `read_manifest` has made sure that none has holes."""
    lengths: Counter[tuple[str, str]] = Counter()
    for piece in manifest.pieces:
        lengths[piece.name, piece.kind] += piece.length
    for name, size in sizes_of(manifest).items():
        for kind in KINDS:
            found = lengths.pop((name, kind), 0)
            if found != size:
                yield f"{name} {kind} has {found} elements, the model has {size}"
    for name, kind in lengths:
        yield f"{name[:200]} {kind} is none of the model's arrays"


def sizes_of(manifest: Manifest) -> dict[str, int]:
    """Return the elements of every parameter of the checkpoint's model."""
    with torch.device("meta"):
        return {name: parameter.numel() for name, parameter in Decoder(manifest.model).named_parameters()}


def _wrong_sizes(store: Store, manifest: Manifest) -> Iterator[str]:
    for file in manifest.files:
        key = prefix(manifest.id) + file.name
        try:
            size = store.size(key)
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            yield f"{key} is gone"
            continue
        if size != file.size:
            yield f"{key} has {size} bytes, {file.size} were written"


def _not_finite(block: Block, data: bytearray) -> list[str]:
    found = []
    for piece in block.pieces:
        first, values = elements(block, data, piece)
        # The extremes tell without a copy of the block: what is not a number is both of them.
        if not all(math.isfinite(extreme) for extreme in values.aminmax()):
            bad = int((~torch.isfinite(values)).sum())
            found.append(
                f"{piece.name} {piece.kind}: {bad} of elements {first} to {first + len(values)} are not finite"
            )
    return found
