"""What differs between two checkpoints: the settings behind them, and every array, streamed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from skywork_trainer.checkpoint.blocks import in_parallel
from skywork_trainer.checkpoint.manifest import Manifest
from skywork_trainer.checkpoint.pieces import PieceReader
from skywork_trainer.checkpoint.verify import sizes_of
from skywork_trainer.engine import KINDS
from skywork_trainer.storage import Store

_CHUNK_ELEMENTS = 1 << 20
_SETTINGS = (
    "stage",
    "generation",
    "step",
    "tokens",
    "optimizer_step",
    "world",
    "zero_stage",
    "model",
    "tokenizer_sha256",
    "sequence_length",
    "global_batch_sequences",
    "fingerprints",
    "past_hash",
    "seed",
    "versions",
)


@dataclass(frozen=True)
class Difference:
    """How far the second of two arrays is from the first."""

    parameter: str
    kind: str
    max_abs: float
    """Largest difference of an element; not a number where either array has one."""
    relative: float
    """Euclidean length of the difference, divided by that of the first array."""


def settings(one: Manifest, two: Manifest) -> dict[str, tuple[object, object]]:
    """Return what differs between the two manifests, by dotted name; absent values are None."""
    first, second = (_flat(manifest.model_dump(mode="json", include=set(_SETTINGS))) for manifest in (one, two))
    names = [*first, *(name for name in second if name not in first)]
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def incomparable(one: Manifest, two: Manifest) -> list[str]:
    """Return the parameters that the two do not both have in the same size."""
    first, second = sizes_of(one), sizes_of(two)
    return [name for name in first | second if first.get(name) != second.get(name)]


def compare(
    store: Store, one: Manifest, two: Manifest, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Difference]:
    """Yield the difference of every array that both have in the same size, in the decoder's order.

    Reads exactly the bytes of the arrays, a few chunks at a time, and does not check their hashes: `verify` does.
    CheckpointCorrupt when an object is gone or too short.
    """
    sizes, skipped = sizes_of(one), incomparable(one, two)
    common = [name for name in sizes if name not in skipped]
    readers = PieceReader(store, one), PieceReader(store, two)
    total, done = len(KINDS) * sum(sizes[name] for name in common), 0

    def measure(chunk: tuple[str, str, int, int]) -> tuple[float, float, float]:
        first, second = (reader(*chunk) for reader in readers)
        apart = second - first
        return float(apart.abs().max()), _length(apart), _length(first)

    for name in common:
        for kind in KINDS:
            starts = range(0, sizes[name], _CHUNK_ELEMENTS)
            chunks = [(name, kind, start, min(_CHUNK_ELEMENTS, sizes[name] - start)) for start in starts]
            parts = torch.tensor(list(in_parallel(measure, chunks)), dtype=torch.float64)
            apart, length = _length(parts[:, 1]), _length(parts[:, 2])
            done += sizes[name]
            progress(done, total)
            # torch's maximum passes on what is not a number; Python's would lose it.
            yield Difference(name, kind, float(parts[:, 0].max()), apart / length if length else _over_zero(apart))


def _length(array: Tensor) -> float:
    return float(torch.linalg.vector_norm(array, dtype=torch.float64))


def _over_zero(apart: float) -> float:
    return apart * float("inf") if apart else 0.0


def _flat(values: dict[str, object], before: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{before}{name}.")
        else:
            out[before + name] = value
    return out
