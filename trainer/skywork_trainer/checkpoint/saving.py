"""When the loop saves, and what it must know of it: interval, saver and ledger as one thing with few calls."""

import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from skywork_trainer.checkpoint.interval import Interval
from skywork_trainer.checkpoint.ledger import Ledger
from skywork_trainer.checkpoint.manifest import Counters
from skywork_trainer.checkpoint.saver import NotSaved, Saved, Saver, Snapshot
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.curve import Record
from skywork_trainer.engine import Fragment
from skywork_trainer.storage import Store


class Due(IntEnum):
    """Which save is due after a step."""

    NONE = 0
    LOCAL = 1
    """On the nodes' disks only."""
    DURABLE = 2


class SaveReports(Protocol):
    """What is told of saves; `metrics.Reporter` is one."""

    def saved(self, *, checkpoint: str, step: int, created: float, seconds: float, size_bytes: int) -> None:
        """A checkpoint is committed."""
        ...

    def kept_locally(self) -> None:
        """A checkpoint is kept on the nodes."""
        ...

    def save_begun(self, *, stall_seconds: float) -> None:
        """Training stood still for so long, and goes on while a save is in flight."""
        ...

    def save_skipped(self) -> None:
        """A save was due while another was in flight."""
        ...

    def save_failed(self, reason: str) -> None:
        """A save came to nothing."""
        ...


class Saving:
    """One rank's saves in one generation; every method but `trained`, `note` and `votes` is collective."""

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        *,
        world: World,
        generation: int,
        local: Path,
        reports: SaveReports,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._world, self._reports, self._clock = config, world, reports, clock
        self._saver = Saver(store, config, world=world, generation=generation, local=local)
        self.ledger = Ledger()
        self._durable_step: int | None = 0
        self._interval = self._new_interval(Counters())

    def resume(self, *, parent: str, step: int, counters: Counters, durable: bool) -> None:
        """Start from a checkpoint; without `durable` from one that only the nodes keep."""
        self.ledger = Ledger(parent, step)
        self._durable_step = step if durable else None
        self._interval = self._new_interval(counters)

    def prepare(self, fragments: Sequence[Fragment]) -> None:
        """Make room for copies of the engine's state, once it has its shape."""
        self._saver.prepare(fragments)

    def unsaved(self, step: int) -> bool:
        """Return whether the state after `step` steps has still to be committed to the object store."""
        return self._durable_step != step

    @property
    def trained_seconds(self) -> float:
        """Time that the run has trained for."""
        return self._interval.trained_seconds

    def trained(self, step: int, sequences: Sequence[int], loss: float) -> None:
        """Take down that step `step` is done."""
        self.ledger.trained(step, sequences, loss)

    def note(self, record: Record) -> None:
        """Keep a record for the curve that lies beside the checkpoints; rank 0's are written."""
        if self._world.rank == 0:
            self.ledger.note(record)

    def votes(self, step: int) -> list[float]:
        """Return what this rank adds to the sum that step `step` makes."""
        due = Due.NONE
        if self._world.rank == 0:
            done = step + 1
            due = Due.DURABLE if self._interval.due(done) else Due.LOCAL if self._interval.local_due() else Due.NONE
        return [*self._saver.votes(), due]

    def advance(self, step: int, votes: Sequence[float]) -> Due:
        """Take a save in flight one step on; return which save may begin now, after `step` steps."""
        *flying, asked = votes
        self._take(self._saver.advance(flying))
        due = Due(int(asked))
        if due is not Due.NONE and self._saver.in_flight:
            if due is Due.DURABLE:
                self._reports.save_skipped()
            self._interval.begun(step, durable=due is Due.DURABLE)
            return Due.NONE
        return due

    def begin(self, snapshot: Callable[[], Snapshot], due: Due) -> None:
        """Start a save that is due, and let training go on."""
        if due is Due.DURABLE and not self._config.checkpoints.background:
            self.save(snapshot)
            return
        state = snapshot()
        self._interval.begun(state.step, durable=due is Due.DURABLE)
        stall = self._saver.begin(state, durable=due is Due.DURABLE)
        self._reports.save_begun(stall_seconds=stall)

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Return once the state is committed. Raises StorageError or Superseded on all ranks when it cannot be.

        `snapshot` is called when nothing is in flight any more: what it holds depends on what that has become.
        """
        self.finish()
        began = time.monotonic()
        manifest = self._saver.save(snapshot())
        seconds = time.monotonic() - began
        self._interval.begun(manifest.step, durable=True)
        self._committed(manifest.id, manifest.step)
        size = sum(file.size for file in manifest.files)
        self._report(manifest.id, manifest.step, manifest.created, seconds, size)

    def finish(self) -> None:
        """Wait until no save is in flight."""
        self._take(self._saver.finish())

    def close(self) -> None:
        """End what stores in the background."""
        self._saver.close()

    def _take(self, outcome: Saved | NotSaved | None) -> None:
        if isinstance(outcome, NotSaved):
            self._reports.save_failed(outcome.trouble.reason)
        elif outcome is not None and not outcome.durable:
            # The ledger stays: the chain of durable checkpoints shall not lead through one that a node can lose.
            self._reports.kept_locally()
        elif outcome is not None:
            self._committed(outcome.id, outcome.step)
            self._interval.measured(stall_seconds=outcome.stall_seconds, save_seconds=outcome.seconds)
            self._report(outcome.id, outcome.step, outcome.created, outcome.seconds, outcome.size_bytes)

    def _committed(self, identity: str, step: int) -> None:
        self.ledger.committed(identity, step)
        self._durable_step = step

    def _report(self, identity: str, step: int, created: float, seconds: float, size_bytes: int) -> None:
        self._reports.saved(checkpoint=identity, step=step, created=created, seconds=seconds, size_bytes=size_bytes)

    def _new_interval(self, counters: Counters) -> Interval:
        return Interval(
            self._config.checkpoints,
            tokens_per_step=self._config.global_batch_tokens,
            clock=self._clock,
            trained_seconds=counters.trained_seconds,
            failures=counters.generations - 1,
        )
