"""The training loop of one stage: restore, step, validate, save, until the stage's last step or a request to leave.

Every decision that all ranks must share (the newest checkpoint, saving now, leaving) is taken by one of them and
travels with a collective that happens anyway, so that no rank ever waits in another one's save.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from skywork_trainer import schedule
from skywork_trainer.batch import micro_batches, rank_sequences
from skywork_trainer.checkpoint import CheckpointMismatch
from skywork_trainer.checkpoint.forking import fork, forked_counters
from skywork_trainer.checkpoint.history import recent_losses
from skywork_trainer.checkpoint.local import local_folder
from skywork_trainer.checkpoint.manifest import Counters, Manifest
from skywork_trainer.checkpoint.restore import Candidates, check_compatible
from skywork_trainer.checkpoint.returning import roll_back
from skywork_trainer.checkpoint.saver import DataIdentity, Snapshot
from skywork_trainer.checkpoint.saving import Due, Saving
from skywork_trainer.collectives import World
from skywork_trainer.config import EXIT_DONE, EXIT_LEFT, RunConfig, Section, SpikeAction, StartFrom
from skywork_trainer.domains import Domains
from skywork_trainer.engine import Engine
from skywork_trainer.engine.initial import draw_weights
from skywork_trainer.exchange.start import load_initial_weights
from skywork_trainer.guards import RECALLED_WINDOWS, Rollback, SpikeDetector, is_skipped
from skywork_trainer.metrics import Reporter
from skywork_trainer.monitor import Monitor
from skywork_trainer.storage import Store
from skywork_trainer.traffic import Traffic
from skywork_trainer.validation import by_age, merged, validate

_log = logging.getLogger(__name__)


class Stream(Protocol):
    """What the loop asks of the data; `data.stream.SequenceStream` is one."""

    tokenizer_sha256: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """Identity of every source's content."""
        ...

    def read(self, sequence: int) -> npt.NDArray[np.int64]:
        """Return sequence_length + 1 tokens."""
        ...

    def drawn(self, sequence: int) -> dict[str, int]:
        """Return how many sequences of each source the stage draws before `sequence`."""
        ...

    def past_hash(self, sequence: int) -> str:
        """Return the identity of all that decided the draws before `sequence`."""
        ...

    def epochs(self, sequence: int) -> dict[str, float]:
        """Return how often the sequences before `sequence` have read each source."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """Return what a person should know about this stage's data."""
        ...

    def advance(self, step: int, sequences_of: Callable[[int], Sequence[int]]) -> None:
        """Fetch what `step` and those behind it read in the background."""
        ...

    def traffic(self) -> Traffic:
        """Return what reading has cost so far."""
        ...

    @property
    def substituted(self) -> Mapping[int, int]:
        """Window read instead, by sequence, of sequences that could not be read as planned."""
        ...


class Trainer:
    """One rank's training of one stage in one generation."""

    def __init__(
        self,
        config: RunConfig,
        *,
        engine: Engine,
        stream: Stream,
        domains: Domains,
        store: Store,
        world: World,
        generation: int,
        reporter: Reporter,
        cache: Path,
        leave: Callable[[], bool],
        before_step: int | None = None,
        after: str = "",
        asked: Callable[[], str] = lambda: "",
    ) -> None:
        """`asked` returns a new value whenever somebody wants all domains measured.

        `after` is why the generation before ended.
        """
        self._config, self._engine, self._stream = config, engine, stream
        self._domains, self._store, self._world = domains, store, world
        self._asked, self._after = asked, after
        self._reporter, self._leave, self._before_step = reporter, leave, before_step
        self._generation, self._local = generation, local_folder(cache, config.checkpoints.uri)
        self._saving = Saving(store, config, world=world, generation=generation, local=self._local, reports=reporter)
        self._stage_steps = config.stage_steps(config.stage_index)
        self._micro_batches = micro_batches(config, world.size)
        self._step = 0
        self._counters = Counters()
        self._spikes = SpikeDetector(config.guards, stage_start=self._stage_steps.start)
        self._rollbacks: tuple[Rollback, ...] = ()
        self._monitor = Monitor(config, leads=world.rank == 0, generation=generation, note=self._saving.note)
        self._heed: Callable[[bool], None] = lambda heeded: None
        self._trains = False

    def run(self, *, heed: Callable[[bool], None] = lambda heeded: None) -> int:
        """Train to the stage's end or until asked to leave; return the exit code. Collective.

        `heed` is told whether `leave` is looked at soon. Where it is not nothing was trained yet, so nothing is lost by
        ending at once: otherwise the compilation of the first step would outlast every grace period.
        """
        self._reporter.section(Section.RESTORE)
        self._restore()
        self._saving.prepare(self._engine.fragments())
        self._heed = heed
        first, end = self._stage_steps.start, self._stage_steps.stop
        while self._step < end:
            starting = self._domains.names and self._step == first and not self._counters.stage_start_validation
            if starting and not self._validate(stage_start=True):
                return self._left()
            if is_skipped(self._step, self._rollbacks):
                self._leave_out()
                continue
            self._reporter.section(Section.STEP if self._trains else Section.FIRST_STEP)
            leaving, wanted, due = self._train_step()
            wanted = wanted or self._validation_due()
            if leaving or (self._step < end and wanted and not self._validate()):
                return self._left()
            if self._step < end and due is not Due.NONE:
                self._reporter.section(Section.SAVE)
                self._saving.begin(self._snapshot, due)
        if self._domains.names and self._validated_step < end:
            if not self._validate():
                return self._left()
            self._save()
        elif self._saving.unsaved(self._step):
            self._save()
        self._reporter.flush()
        return EXIT_DONE

    def _left(self) -> int:
        """Save what was trained since the last commit, if anything was, and return the exit code."""
        self._reporter.section(Section.SAVE)
        self._saving.finish()
        if self._saving.unsaved(self._step):
            self._save()
        self._reporter.flush()
        return EXIT_LEFT

    # -- restoring ---------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        candidates = Candidates(
            self._store,
            self._world,
            local=self._local,
            generation=self._generation,
            before_step=self._before_step,
        )
        self._rollbacks = candidates.rollbacks
        while (manifest := candidates.next()) is not None:
            check_compatible(manifest, self._config, self._data_identity(manifest))
            if candidates.load(manifest, self._engine):
                break
        start = self._config.start_from
        (corrupt,) = self._world.sum([len(candidates.corrupt) if self._world.rank == 0 else 0])
        if manifest is not None:
            self._resume_from(manifest, durable=not candidates.is_local(manifest))
        elif corrupt:
            raise CheckpointMismatch(
                f"none of the {corrupt:.0f} checkpoints at {self._config.checkpoints.uri} can be read as it was "
                "written. Restore the objects, or give this run a checkpoints.uri of its own; nothing was overwritten",
                reason="CheckpointCorrupt",
            )
        elif start is not None and start.step in self._stage_steps:
            self._fork(start)
        elif self._stage_steps.start > 0:
            raise CheckpointMismatch(
                f"stage {self._config.stage!r} starts at step {self._stage_steps.start}, and there is no checkpoint at "
                f"{self._config.checkpoints.uri} to go on from: correct checkpoints.uri, or train the stages before it",
                reason="CheckpointMissing",
            )
        elif self._config.initial_weights_uri is not None:
            load_initial_weights(self._config, self._engine, self._world)
            self._counters = Counters(initial_weights_uri=self._config.initial_weights_uri)
        else:
            draw_weights(self._config, self._engine)
        if manifest is None:
            # Before a first step a domain that is missing is a mistake; later it would cost a restart its time.
            self._domains.windows(may_do_without=False)
        found = manifest.id if manifest else ""
        self._reporter.restored(
            step=self._step,
            checkpoint=found,
            durable=manifest is not None and not candidates.is_local(manifest),
            created=manifest.created if manifest else 0.0,
            corrupt=candidates.corrupt,
            totals=self._counters.totals,
        )
        self._monitor.restored(
            step=self._step,
            curve=self._counters.validation_curve,
            world=self._world.size,
            after=self._after,
            resumed_from=found,
        )
        for warning in self._stream.warnings():
            _log.warning("%s", warning)
        self._reporter.warned(self._stream.warnings())
        self._report_data()
        self._report_validation()

    def _fork(self, start: StartFrom) -> None:
        manifest = fork(start, self._config, self._engine, self._world, data=self._data_identity)
        begins = manifest.step == self._stage_steps.start or manifest.stage != self._config.stage
        self._counters = forked_counters(manifest, start, stage_begins=begins)
        self._step = manifest.step
        self._saving.resume(parent="", step=self._step, counters=self._counters, durable=False)

    def _resume_from(self, manifest: Manifest, *, durable: bool) -> None:
        counters = manifest.counters
        if manifest.stage != self._config.stage:
            counters = counters.model_copy(update={"stage_start_validation": ()})
        self._counters = counters.model_copy(update={"generations": counters.generations + 1})
        self._step = manifest.step
        self._saving.resume(parent=manifest.id, step=manifest.step, counters=self._counters, durable=durable)
        self._recall_losses(manifest.id)
        if self._step < self._stage_steps.start:
            # What the stage before ended with could not be read: train those steps again, at their own rate and
            # mixture (both are functions of the step), rather than start this stage from older weights.
            _log.warning("going on at step %d, before this stage's first (%d)", self._step, self._stage_steps.start)

    def _recall_losses(self, identity: str) -> None:
        """Show the spike detector what the generations before saw: a spike may come right behind an interruption."""
        told = b"[]"
        if self._world.rank == 0:
            first = max(self._step - RECALLED_WINDOWS * self._config.guards.window_steps, self._stage_steps.start)
            told = json.dumps(recent_losses(self._store, identity, first_step=first)).encode()
        recalled = [(step, loss) for step, loss in json.loads(self._world.broadcast_bytes(told))]
        for step, loss in recalled:
            self._spikes.see(step, loss)
        self._monitor.recall((step + 1, loss) for step, loss in recalled)

    def _data_identity(self, manifest: Manifest | None = None) -> DataIdentity:
        step = manifest.step if manifest else self._step
        beyond = manifest is not None and step > self._stage_steps.stop
        return DataIdentity(
            tokenizer_sha256=self._stream.tokenizer_sha256,
            fingerprints=self._stream.fingerprints,
            # A later stage's past names sources that this stage has not opened: there is nothing to compare.
            past_hash=manifest.past_hash
            if manifest is not None and beyond
            else self._stream.past_hash(step * self._config.global_batch_sequences),
        )

    # -- one step ----------------------------------------------------------------------------------------------------

    def _train_step(self) -> tuple[bool, bool, Due]:
        """Train one step; return whether to leave, whether somebody asked for a validation, and what to save."""
        config, step, began = self._config, self._step, time.monotonic()
        sequences = self._sequences(step)
        self._stream.advance(step, self._sequences)
        asked = time.monotonic()
        tokens_RS, valid_RT = self._read(sequences)
        waited = time.monotonic() - asked
        self._reporter.read(waited_seconds=waited, traffic=self._stream.traffic())
        size, nll = config.engine.micro_batch_sequences, 0.0
        for index in range(self._micro_batches):
            rows = slice(index * size, (index + 1) * size)
            nll += float(
                self._engine.forward_backward(
                    tokens_RS[rows],
                    valid_RT[rows],
                    global_tokens=config.global_batch_tokens,
                    last=index == self._micro_batches - 1,
                )
            )
        first, self._trains = not self._trains, True
        self._heed(True)
        # Before the update, so that a spike can still be kept out of the weights.
        wishes = [self._leave(), self._is_asked()]
        total, leaving, wanted, *votes = self._world.sum([nll, *wishes, *self._saving.votes(step)])
        loss, rate = total / config.global_batch_tokens, schedule.learning_rate(config, step)
        norm = self._update(step, loss, rate)
        forward_seconds = self._engine.forward_seconds()
        if not first:  # which compiles, and allocates
            self._reporter.computed(forward_seconds)
        self._step += 1
        self._saving.trained(step, sequences, loss)
        seconds = time.monotonic() - began
        epochs = self._report_data()
        self._monitor.stepped(
            step=self._step, loss=loss, rate=rate, norm=norm, seconds=seconds, waited=waited, epochs=epochs
        )
        self._reporter.diagnosed(self._monitor.diagnoses)
        self._reporter.stepped(step=self._step, loss=loss, rate=rate, norm=norm, seconds=seconds)
        return leaving > 0, wanted > 0, self._saving.advance(self._step, votes)

    def _leave_out(self) -> None:
        """Count a step that a rollback takes out of the run as done."""
        if not is_skipped(self._step - 1, self._rollbacks):
            self._monitor.happened(self._step, "StepsLeftOut", "a rollback leaves out the steps around a spike")
        self._saving.trained(self._step, (), math.nan)
        self._step += 1

    def _update(self, step: int, loss: float, rate: float) -> float:
        """Apply the step's gradients unless its loss is a spike that shall not be; return their norm."""
        guards, spike = self._config.guards, self._spikes.see(step, loss)
        if spike is None:
            return self._engine.step(rate)
        _log.warning("%s", spike)
        self._reporter.spiked(guards.spike_action)
        self._monitor.happened(step + 1, "LossSpike", f"{spike}; {guards.spike_action}")
        if guards.spike_action is SpikeAction.ROLLBACK:
            roll_back(
                spike,
                guards,
                self._store,
                self._world,
                stage=self._stage_steps,
                past=self._rollbacks,
                saved_by=(self._config.incarnation, self._generation),
            )
        if guards.spike_action is SpikeAction.SKIP:
            self._engine.skip()
            return math.nan
        return self._engine.step(rate)

    def _sequences(self, step: int) -> range:
        return rank_sequences(step, self._world.rank, self._world.size, self._config)

    def _report_data(self) -> Mapping[str, float]:
        """Say what the stage has drawn; return how often the run has read each source."""
        trained = self._step * self._config.global_batch_sequences
        epochs = self._stream.epochs(trained)
        self._reporter.drawn(self._stream.drawn(trained), epochs=epochs)
        return epochs

    def _read(self, sequences: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this rank's sequences, filled up with masked rows so that every rank runs as many micro-batches."""
        rows, length = self._micro_batches * self._config.engine.micro_batch_sequences, self._config.sequence_length
        tokens_RS = np.zeros((rows, length + 1), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            tokens_RS[row] = self._stream.read(sequence)
        valid_RT = torch.zeros(rows, length)
        valid_RT[: len(sequences)] = 1.0
        return torch.from_numpy(tokens_RS).to(self._world.device), valid_RT.to(self._world.device)

    # -- validating and saving ---------------------------------------------------------------------------------------

    @property
    def _validated_step(self) -> int:
        return max((domain.step for domain in self._counters.validation), default=-1)

    def _validation_due(self) -> bool:
        if not self._domains.names:
            return False
        tokens, every = self._config.global_batch_tokens, self._config.validation.every_tokens
        return self._step * tokens // every > max(self._validated_step, 0) * tokens // every

    def _is_asked(self) -> bool:
        leads = self._world.rank == 0 and bool(self._domains.names)
        return leads and self._asked() not in ("", self._counters.validate_request)

    def _validate(self, *, stage_start: bool = False) -> bool:
        """Measure the domains; return whether it came to an end, and was not cut short by a request to leave."""
        request, began = self._asked(), time.monotonic()
        budget = self._config.validation.time_budget_seconds or math.inf
        self._reporter.section(Section.VALIDATE)
        windows = self._domains.windows()
        self._heed(True)
        measured = validate(
            self._engine.module,
            by_age(windows, self._counters.validation),
            step=self._step,
            world=self._world,
            leave=self._leave,
            over=lambda: time.monotonic() - began > budget,
            beat=self._reporter.alive,
        )
        self._heed(self._trains or measured is None)
        if measured is None:
            return False
        measured = self._domains.with_sizes(measured)
        seconds = time.monotonic() - began
        done = {loss.domain for loss in measured}
        cut = tuple(one.domain for one in windows if one.domain not in done)
        self._monitor.validated(
            self._step,
            measured,
            seconds=seconds,
            stage_start=stage_start,
            cut=cut,
            unmeasured=self._domains.broken,
        )
        self._reporter.measured(seconds=seconds)
        self._counters = self._counters.model_copy(
            update={
                "validation": merged(self._domains.names, self._counters.validation, measured),
                "stage_start_validation": measured if stage_start else self._counters.stage_start_validation,
                "validation_curve": self._monitor.curve,
                "validate_request": request or self._counters.validate_request,
            }
        )
        self._report_validation()
        return True

    def _report_validation(self) -> None:
        counters = self._counters
        self._reporter.diagnosed(self._monitor.diagnoses)
        self._reporter.validated(
            counters.validation,
            stage_start=counters.stage_start_validation,
            curve=self._monitor.curve,
            request=counters.validate_request,
        )

    def _save(self) -> None:
        self._reporter.section(Section.SAVE)
        self._saving.save(self._snapshot)

    def _snapshot(self) -> Snapshot:
        ledger, losses = self._saving.ledger, self._saving.ledger.losses
        drawn = self._stream.drawn(self._step * self._config.global_batch_sequences)
        counters = {
            "train_loss": losses[-1] if losses else self._counters.train_loss,
            "source_sequences": drawn,
            "trained_seconds": self._saving.trained_seconds,
            "totals": self._reporter.totals(),
        }
        records = ledger.records(self._step)
        records += self._monitor.closing(self._step, spent=self._reporter.spent(), drawn=drawn)
        substituted = self._stream.substituted
        since = set(ledger.sequences) if substituted else set()
        return Snapshot(
            step=self._step,
            stage=schedule.stage_of_step(self._config, max(self._step - 1, 0)).name,
            optimizer_step=self._engine.optimizer_step,
            fragments=self._engine.fragments(),
            data=self._data_identity(),
            counters=self._counters.model_copy(update=counters),
            parent=ledger.parent,
            parent_step=ledger.parent_step,
            consumed=ledger.consumed,
            substituted={sequence: window for sequence, window in substituted.items() if sequence in since},
            losses=losses,
            records=records,
        )
