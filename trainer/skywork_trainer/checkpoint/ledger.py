"""What was trained since the newest commit, exactly, so that the next history link covers it whatever saves failed."""

from collections.abc import Sequence
from typing import NamedTuple

from skywork_trainer.checkpoint.history import Runs, encode
from skywork_trainer.curve import Record


class _Step(NamedTuple):
    step: int
    sequences: Sequence[int]
    loss: float


class Ledger:
    """One rank's steps since the checkpoint `parent`."""

    def __init__(self, parent: str = "", parent_step: int = 0) -> None:
        self.parent, self.parent_step = parent, parent_step
        self._steps: list[_Step] = []
        self._records: list[Record] = []
        self._taken: dict[int, int] = {}

    def trained(self, step: int, sequences: Sequence[int], loss: float) -> None:
        """Take down that step `step` (the first is 0) is done."""
        self._steps.append(_Step(step, sequences, loss))

    def committed(self, identity: str, step: int) -> None:
        """Forget what a checkpoint after `step` steps has made permanent; later steps stay."""
        self.parent, self.parent_step = identity, step
        self._steps = [one for one in self._steps if one.step >= step]
        # Not by step: a record may be noted at the very step of a save that is already under way.
        del self._records[: self._taken.pop(step, 0)]

    def note(self, record: Record) -> None:
        """Keep a record for the curve."""
        self._records.append(record)

    def records(self, step: int) -> list[Record]:
        """Return what a save of the state after `step` steps makes permanent once it is committed."""
        self._taken = {step: len(self._records)}
        return list(self._records)

    @property
    def sequences(self) -> list[int]:
        """Numbers of the sequences that this rank trained, in order."""
        return [number for one in self._steps for number in one.sequences]

    @property
    def consumed(self) -> Runs:
        """The same, as runs."""
        return encode(self.sequences)

    @property
    def losses(self) -> list[float]:
        """Loss of every step."""
        return [one.loss for one in self._steps]
