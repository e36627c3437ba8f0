"""What the ranks really consumed between two checkpoints, and the audit that counts it over a whole run."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.checkpoint.rollbacks import read_rollbacks
from skywork_trainer.guards import is_skipped
from skywork_trainer.storage import StorageError, Store

Runs = tuple[tuple[int, int, int], ...]
"""Numbers as (start, stride, count): a rank's share of many steps is one run where the world divides the batch."""


class History(BaseModel):
    """Steps [first_step, last_step), as trained between the checkpoint `parent` and the checkpoint `id`."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    id: str
    parent: str
    first_step: int
    last_step: int
    batch: int
    """Sequences of one step."""
    ranks: tuple[Runs, ...]
    """Sequence numbers each rank trained, as it recorded them."""
    substituted: dict[int, int] = {}
    """Window of its source that was read instead, by sequence: its own stayed corrupt."""
    losses: tuple[float, ...]
    """Training loss of every step."""


def encode(sequences: Iterable[int]) -> Runs:
    """Return the numbers, in order, as few runs of equal stride."""
    runs: list[list[int]] = []
    for number in sequences:
        if runs:
            run = runs[-1]
            if run[2] == 1:
                run[1], run[2] = number - run[0], 2
                continue
            if number == run[0] + run[1] * run[2]:
                run[2] += 1
                continue
        runs.append([number, 1, 1])
    return tuple((start, stride, count) for start, stride, count in runs)


def decode(runs: Runs) -> list[int]:
    """Return the numbers that `encode` was given."""
    return [start + stride * k for start, stride, count in runs for k in range(count)]


def history_key(identity: str) -> str:
    """Return the key of the history that ends in a checkpoint."""
    return f"history/{identity}.json"


def recent_losses(store: Store, identity: str, *, first_step: int) -> list[tuple[int, float]]:
    """Return (step, loss) of the steps behind a checkpoint, from `first_step` on as far as the records reach."""
    links: list[History] = []
    while identity and (not links or links[-1].first_step > first_step):
        try:
            links.append(History.model_validate_json(store.get(history_key(identity))))
        except StorageError as error:
            # A checkpoint on the nodes alone has no record yet, and one that somebody copied here may have none.
            if error.reason != "NotFound":
                raise
            break
        identity = links[-1].parent
    numbered = ((link.first_step + at, loss) for link in reversed(links) for at, loss in enumerate(link.losses))
    return [(step, loss) for step, loss in numbered if step >= first_step]


_CAMEL = {
    "samples_consumed": "samplesConsumed",
    "samples_lost": "samplesLost",
    "samples_repeated": "samplesRepeated",
    "samples_substituted": "samplesSubstituted",
    "samples_skipped": "samplesSkipped",
}


@dataclass(frozen=True)
class Audit:
    """The whole run behind the newest checkpoint, counted."""

    checkpoint: str
    steps: int
    samples_consumed: int
    samples_lost: int
    samples_repeated: int
    samples_substituted: int
    samples_skipped: int
    """Left out on purpose, by rollbacks."""
    losses: list[float]
    """Of every step that the run trained; not a number where it was left out."""

    def to_json(self) -> dict[str, object]:
        """Return the audit with camelCase keys."""
        values = asdict(self)
        return {_CAMEL.get(key, key): value for key, value in values.items()}


def audit(store: Store) -> Audit:
    """Walk back from the newest committed checkpoint and count samples that no step, or more than one, trained on.

    Raises StorageError NotFound when a link of the chain has no history.
    """
    identities = committed(store)
    if not identities:
        return Audit("", 0, 0, 0, 0, 0, 0, [])
    newest = read_manifest(store, identities[-1])
    rollbacks = read_rollbacks(store)
    consumed = lost = repeated = substituted = skipped = 0
    losses: list[Sequence[float]] = []
    identity, expected_end = newest.id, newest.step
    while identity:
        history = History.model_validate_json(store.get(history_key(identity)))
        batch = history.batch
        # Links must join: a gap between two of them was trained by nobody, an overlap twice.
        lost += max(expected_end - history.last_step, 0) * batch
        repeated += max(history.last_step - expected_end, 0) * batch
        low, high = history.first_step * batch, history.last_step * batch
        counts = np.zeros(high - low, dtype=np.int64)
        for runs in history.ranks:
            for start, stride, count in runs:
                numbers = start + stride * np.arange(count, dtype=np.int64)
                consumed += count
                inside = (numbers >= low) & (numbers < high)
                # A number outside these steps belongs to another link, which counts it as its own.
                repeated += int((~inside).sum())
                np.add.at(counts, numbers[inside] - low, 1)
        # A step that a rollback left out was trained by nobody, and has no loss to show for it.
        left_out = np.array(
            [
                is_skipped(step, rollbacks) and math.isnan(loss)
                for step, loss in zip(range(history.first_step, history.last_step), history.losses, strict=True)
            ],
            dtype=bool,
        ).repeat(batch)
        skipped += int((left_out & (counts == 0)).sum())
        lost += int((~left_out & (counts == 0)).sum())
        repeated += int(np.maximum(counts - 1, 0).sum())
        substituted += len(history.substituted)
        losses.append(history.losses)
        identity, expected_end = history.parent, history.first_step
    lost += (expected_end - newest.counters.forked_step) * newest.global_batch_sequences
    ordered = [loss for link in reversed(losses) for loss in link]
    return Audit(newest.id, newest.step, consumed, lost, repeated, substituted, skipped, ordered)
