"""Checkpoints of one rank that trained every sample since their parent, for tests that need no training."""

from pathlib import Path
from typing import Any

import torch
from skywork_trainer.checkpoint.history import encode
from skywork_trainer.checkpoint.manifest import Counters
from skywork_trainer.checkpoint.saver import DataIdentity, Saver, Snapshot
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Fragment, Reader, Span
from skywork_trainer.storage import Store

from tests.unit.train.world import BATCH

DATA = DataIdentity(tokenizer_sha256="t" * 64, fingerprints={"main": "f"}, past_hash="p")
ELEMENTS = 1000


class OneArray:
    """An engine whose state is one parameter w with all elements at one value."""

    def __init__(self, value: float = 0.0) -> None:
        self.arrays = [torch.full((ELEMENTS,), value + k / 4) for k in range(3)]

    def fragments(self) -> list[Fragment]:
        return [Fragment(Span("w", 0, ELEMENTS), *self.arrays)]

    def load_fragments(self, read: Reader, *, optimizer_step: int) -> None:
        self.arrays = list(read(Span("w", 0, ELEMENTS)))

    @property
    def value(self) -> float:
        """The value of all elements; fails when they are not alike."""
        for k, array in enumerate(self.arrays):
            assert torch.equal(array, torch.full((ELEMENTS,), float(self.arrays[0][0]) + k / 4))
        return float(self.arrays[0][0])


def saver(store: Store, config: RunConfig, folder: Path, *, generation: int = 1) -> Saver:
    return Saver(store, config, world=World(), generation=generation, local=folder / "local")


def snapshot(step: int, *, parent: str = "", parent_step: int = 0, **changes: Any) -> Snapshot:
    """The state after `step` steps: every element is the step's number."""
    values: dict[str, Any] = {
        "step": step,
        "stage": "s0",
        "optimizer_step": step,
        "fragments": OneArray(step).fragments(),
        "data": DATA,
        "counters": Counters(),
        "parent": parent,
        "parent_step": parent_step,
        "consumed": encode(range(parent_step * BATCH, step * BATCH)),
        "losses": [float(s) for s in range(parent_step, step)],
    }
    return Snapshot(**(values | changes))
