"""What workers tell the world, by files that appear whole, by rename; the agent serves them.

Rank 0 writes `progress.json` for the operator and `metrics.prom` for Prometheus; what its counters have come to travels
with the checkpoints, so they go on where they were after a restart. Every worker writes `worker-<local rank>.prom`:
what its data cost, how long it computes, what memory it holds.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client import disable_created_metrics

from skywork_trainer.config import CurvePoint, Diagnosis, DomainLoss, Place, Progress, RunConfig, Section
from skywork_trainer.families import Families
from skywork_trainer.flops import flops_per_token, peak_flops_per_second
from skywork_trainer.heartbeat import Heartbeat
from skywork_trainer.perplexity import average_loss, average_perplexity, perplexity
from skywork_trainer.spending import Spending
from skywork_trainer.traffic import Traffic
from skywork_trainer.worker_metrics import WorkerMetrics

_FORWARD_WEIGHT = 0.1
"""Of the newest step: a slow machine is one that stays slow."""
_WRITE_EVERY_SECONDS = 0.5
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 300)
_STALL_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_SHOWN_POINTS = 48
"""Validations in a progress: as many as a terminal has room for."""
GAUGES = {
    "skywork_train_loss": ("Training loss of the newest step (nats per token).",),
    "skywork_train_learning_rate": ("Learning rate of the newest step.",),
    "skywork_train_grad_norm": ("Gradient norm before clipping.",),
    "skywork_train_tokens_per_second": ("Tokens trained per second, newest step.",),
    "skywork_train_model_flops_per_second": ("Model FLOPs per second over all ranks, newest step.",),
    "skywork_train_mfu_ratio": ("Model FLOPs as a share of the devices' dense bf16 peak; where that is known.",),
    "skywork_train_micro_batch_sequences": ("Sequences of one forward pass.",),
    "skywork_generation": ("Generation of the world that trains.",),
    "skywork_checkpoint_last_success_timestamp_seconds": ("Unix time of the newest committed checkpoint.",),
    "skywork_checkpoint_duration_seconds": ("How long the newest save took, from the copy to the commit.",),
    "skywork_checkpoint_size_bytes": ("Size of the newest checkpoint, all ranks.",),
    "skywork_checkpoint_in_flight": ("1 while a save goes on beside training.",),
    "skywork_checkpoint_corrupt": ("Checkpoints found corrupt, and passed over, when this generation started.",),
    "skywork_validation_step": ("Step of the newest validation.",),
    "skywork_validation_timestamp_seconds": ("Unix time of the newest validation.",),
    "skywork_validation_duration_seconds": ("How long the newest validation took.",),
    "skywork_validation_loss": ("Held-out loss (nats per token of the run's tokenizer).", "domain"),
    "skywork_validation_perplexity": ("exp of that loss: per token of the run's tokenizer.", "domain"),
    "skywork_validation_bpb": ("Held-out loss in bits per byte of text.", "domain"),
    "skywork_validation_reference_loss": ("Held-out loss in nats per token of the reference tokenizer.", "domain"),
    "skywork_validation_reference_perplexity": ("exp of the loss per token of the reference tokenizer.", "domain"),
    "skywork_validation_average_loss": ("Mean of the domains' losses, all domains alike.",),
    "skywork_validation_average_perplexity": ("exp of the mean of the domains' log perplexities.",),
    "skywork_validation_tokens": ("Tokens that are predicted in a validation.", "domain"),
    "skywork_validation_characters": ("Characters of the text of those tokens.", "domain"),
    "skywork_validation_bytes": ("Bytes of that text in UTF-8.", "domain"),
    "skywork_source_epochs": ("How often the run has read a source.", "source"),
}
COUNTERS = {
    "skywork_train_steps": ("Steps of the run that are done.",),
    "skywork_train_tokens": ("Tokens of the run that are trained.",),
    "skywork_train_spikes": ("Steps whose loss was a spike, by what was done.", "action"),
    "skywork_train_nonfinite_steps": ("Steps refused for gradients that are not finite.",),
    "skywork_train_time_seconds": ("Where the time of the run's generations has gone, on rank 0.", "state"),
    "skywork_source_sequences": ("Sequences the stage drew from a source.", "source"),
    "skywork_source_tokens": ("Tokens the stage drew from a source.", "source"),
    "skywork_checkpoint_commits": ("Saves that were committed.",),
    "skywork_checkpoint_local_commits": ("Saves that were kept on the nodes only.",),
    "skywork_checkpoint_skipped": ("Saves that were due while another was in flight, and not begun.",),
    "skywork_checkpoint_failures": ("Saves that came to nothing while training went on.", "reason"),
    "skywork_validations": ("Validations that came to an end.",),
}
_KEPT = frozenset(COUNTERS) - {
    "skywork_train_steps", "skywork_train_tokens", "skywork_source_sequences", "skywork_source_tokens",
}  # fmt: skip
"""Counters that no step tells: a checkpoint carries them."""
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "skywork_train_step_duration_seconds": ("How long a step took, this generation.", _STEP_BUCKETS),
    "skywork_checkpoint_stall_seconds": (
        "How long training stood still to copy its state for a save, this generation.",
        _STALL_BUCKETS,
    ),
}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file whole; readers see the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


class Reporter:
    """Keeps this worker's progress; what is the same on all ranks only rank 0 writes."""

    def __init__(self, config: RunConfig, place: Place, *, clock: Callable[[], float] = time.monotonic) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._config, self._place = config, place
        self._folder = config.checkpoints.uri.rstrip("/") + "/checkpoints"
        self._values = Progress()
        self._section = Section.INIT
        self._spending = Spending(clock)
        self._spent_before: dict[str, float] = {}
        self._heartbeat = Heartbeat(place.state_dir, place.local_rank)
        self._forward_seconds = 0.0
        self._written = 0.0
        self._restored = False
        self._peak_flops: float | None = None
        labels = {"namespace": config.namespace, "run": config.run, "stage": config.stage}
        self._run = Families(labels, gauges=GAUGES, counters=COUNTERS, histograms=HISTOGRAMS)
        self._run.set("skywork_generation", place.generation)
        self._worker = WorkerMetrics(labels | {"local_rank": str(place.local_rank)})

    @property
    def progress(self) -> Progress:
        """The newest progress."""
        return self._values

    def on_device(self, name: str, *, micro_batch: int) -> None:
        """Say what the ranks compute on and in micro-batches of how many sequences.

        Where the device's peak is known, its share in use is reported.
        """
        self._run.set("skywork_train_micro_batch_sequences", micro_batch)
        self._update(micro_batch_sequences=micro_batch)
        peak = peak_flops_per_second(name)
        if peak is not None:
            self._peak_flops = peak * self._place.world_size

    def section(self, section: Section) -> None:
        """Say which part of its work this worker is in."""
        known, self._section = section is self._section, section
        self._spending.enter(section)
        self.alive()
        begun = {"initialized_time": time.time()} if section is Section.RESTORE else {}
        if begun or not known or section is Section.INIT:
            # One step after another is told by the steps themselves.
            self._update(section=section, **begun)

    def alive(self) -> None:
        """Give a sign of progress."""
        self._heartbeat.beat(self._section, self._values.step, self._forward_seconds)

    def computed(self, forward_seconds: float | None) -> None:
        """Report what the forward passes of a step took on this rank; None where that says nothing of it."""
        if forward_seconds is not None:
            before = self._forward_seconds or forward_seconds
            self._forward_seconds = before + _FORWARD_WEIGHT * (forward_seconds - before)
            self._worker.computed(self._forward_seconds)

    # -- the run -----------------------------------------------------------------------------------------------------

    def restored(
        self,
        *,
        step: int,
        checkpoint: str,
        durable: bool,
        created: float,
        corrupt: Mapping[str, str],
        totals: Mapping[str, float],
    ) -> None:
        """Report where this generation starts; `checkpoint` is empty for a fresh start.

        `durable` says that the checkpoint lies in the object store, and not on the nodes alone; `corrupt` why others
        were passed over, by id; `totals` what counters had come to.
        """
        self._restored = True
        self._run.resume(totals, _KEPT)
        self._spent_before = {
            key.removeprefix("skywork_train_time_seconds/"): value
            for key, value in totals.items()
            if key.startswith("skywork_train_time_seconds/")
        }
        self._count_to(step)
        self._run.set("skywork_checkpoint_corrupt", len(corrupt))
        found: dict[str, object] = {}
        if durable:
            # Its own commit was not counted yet when it was made.
            self._run.add("skywork_checkpoint_commits")
            self._run.set("skywork_checkpoint_last_success_timestamp_seconds", created)
            found = {
                "checkpoint": checkpoint,
                "checkpoint_step": step,
                "checkpoint_uri": f"{self._folder}/{checkpoint}",
                "checkpoint_time": created,
            }
        self._update(
            restored_time=time.time(),
            step=step,
            first_step=step,
            tokens=step * self._config.global_batch_tokens,
            resumed_from=checkpoint,
            corrupt_checkpoints=tuple(f"{identity}: {why[:300]}" for identity, why in sorted(corrupt.items())[-5:]),
            **found,
        )

    def stepped(self, *, step: int, loss: float, rate: float, norm: float, seconds: float) -> None:
        """Report one step that is done; a norm that is not finite says that it changed nothing."""
        run = self._run
        if not math.isfinite(norm):
            run.add("skywork_train_nonfinite_steps")
        speed = self._config.global_batch_tokens / max(seconds, 1e-9)
        flops = speed * flops_per_token(self._config.model, self._config.sequence_length)
        mfu = flops / self._peak_flops if self._peak_flops else None
        self._count_to(step)
        run.set("skywork_train_loss", loss)
        run.set("skywork_train_learning_rate", rate)
        run.set("skywork_train_grad_norm", norm)
        run.set("skywork_train_tokens_per_second", speed)
        run.set("skywork_train_model_flops_per_second", flops)
        if mfu is not None:
            run.set("skywork_train_mfu_ratio", mfu)
        run.observe("skywork_train_step_duration_seconds", seconds)
        self._values = self._values.model_copy(update={"step": step})
        self.alive()
        self._update(
            step=step,
            first_step_time=self._values.first_step_time or time.time(),
            tokens=step * self._config.global_batch_tokens,
            train_loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            mfu=mfu,
            tokens_per_second=speed,
        )

    def spiked(self, action: str) -> None:
        """Report a loss far above those before it, and what is done about it."""
        self._run.add("skywork_train_spikes", action=action)

    def totals(self) -> dict[str, float]:
        """Return what the counters have come to, for `restored` of a later generation."""
        self._count_time()
        return self._run.totals(_KEPT)

    def spent(self) -> dict[str, float]:
        """Return the seconds of this generation by what they went into."""
        return self._spending.seconds()

    # -- validation and diagnosis ------------------------------------------------------------------------------------

    def measured(self, *, seconds: float) -> None:
        """Report that a validation came to an end, and what it took."""
        self._run.add("skywork_validations")
        self._run.set("skywork_validation_duration_seconds", seconds)
        self._run.set("skywork_validation_timestamp_seconds", time.time())

    def validated(
        self,
        newest: tuple[DomainLoss, ...],
        *,
        stage_start: tuple[DomainLoss, ...],
        curve: Sequence[CurvePoint] = (),
        request: str = "",
    ) -> None:
        """Report held-out losses: the newest, those from before the stage's first step, and the run's so far."""
        for one in newest:
            self._show_domain(one)
        if newest:
            self._run.set("skywork_validation_step", max(one.step for one in newest))
            losses = [one.loss for one in newest]
            self._run.set("skywork_validation_average_loss", average_loss(losses))
            self._run.set("skywork_validation_average_perplexity", average_perplexity(losses))
        shown = tuple(curve[-_SHOWN_POINTS:])
        self._update(
            validation=newest, stage_start_validation=stage_start, validation_curve=shown, validate_request=request
        )

    def diagnosed(self, diagnoses: tuple[Diagnosis, ...]) -> None:
        """Report what every detector says."""
        self._values = self._values.model_copy(update={"diagnoses": diagnoses})

    def _show_domain(self, one: DomainLoss) -> None:
        shown = {
            "loss": one.loss,
            "perplexity": perplexity(one.loss),
            "bpb": one.bits_per_byte,
            "reference_loss": one.reference_loss,
            "reference_perplexity": None if one.reference_loss is None else perplexity(one.reference_loss),
            "tokens": one.tokens,
            "characters": one.characters,
            "bytes": one.bytes,
        }
        for name, value in shown.items():
            if value is not None:
                self._run.set(f"skywork_validation_{name}", value, domain=one.domain)

    # -- data --------------------------------------------------------------------------------------------------------

    def drawn(self, sequences: dict[str, int], *, epochs: dict[str, float]) -> None:
        """Report how many sequences of each source the stage has drawn, and how often the run has read each."""
        for source, count in sequences.items():
            self._run.raise_to("skywork_source_sequences", count, source=source)
            self._run.raise_to("skywork_source_tokens", count * self._config.sequence_length, source=source)
        for source, times in epochs.items():
            self._run.set("skywork_source_epochs", times, source=source)
        self._values = self._values.model_copy(
            update={"source_sequences": dict(sequences), "source_epochs": dict(epochs)}
        )

    def read(self, *, waited_seconds: float, traffic: Traffic) -> None:
        """Report that this worker has its sequences of a step, and what all its reading has cost so far."""
        self._spending.waited(waited_seconds)
        self._worker.read(waited_seconds, traffic)

    def warned(self, warnings: tuple[str, ...]) -> None:
        """Report what a person should know about the stage's data."""
        self._values = self._values.model_copy(update={"warnings": warnings})

    # -- saves -------------------------------------------------------------------------------------------------------

    def save_begun(self, *, stall_seconds: float) -> None:
        """Report that training stood still for so long to copy its state, and goes on while that is stored."""
        self._run.observe("skywork_checkpoint_stall_seconds", stall_seconds)
        self._run.set("skywork_checkpoint_in_flight", 1)

    def save_skipped(self) -> None:
        """Report that a save was due while another was in flight."""
        self._run.add("skywork_checkpoint_skipped")

    def save_failed(self, reason: str) -> None:
        """Report that a save came to nothing."""
        self._run.set("skywork_checkpoint_in_flight", 0)
        self._run.add("skywork_checkpoint_failures", reason=reason)

    def kept_locally(self) -> None:
        """Report a checkpoint that only the nodes keep."""
        self._run.set("skywork_checkpoint_in_flight", 0)
        self._run.add("skywork_checkpoint_local_commits")

    def saved(self, *, checkpoint: str, step: int, created: float, seconds: float, size_bytes: int) -> None:
        """Report a committed checkpoint."""
        self._run.set("skywork_checkpoint_in_flight", 0)
        self._run.add("skywork_checkpoint_commits")
        self._run.set("skywork_checkpoint_last_success_timestamp_seconds", created)
        self._run.set("skywork_checkpoint_duration_seconds", seconds)
        self._run.set("skywork_checkpoint_size_bytes", size_bytes)
        self._update(
            checkpoint=checkpoint,
            checkpoint_step=step,
            checkpoint_uri=f"{self._folder}/{checkpoint}",
            checkpoint_time=created,
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write everything now: the last word of a generation must not fall to throttling."""
        self._write(metrics=True)

    def _count_to(self, step: int) -> None:
        self._run.raise_to("skywork_train_steps", step)
        self._run.raise_to("skywork_train_tokens", step * self._config.global_batch_tokens)

    def _count_time(self) -> None:
        for state, seconds in self._spending.seconds().items():
            before = self._spent_before.get(state, 0.0)
            self._run.raise_to("skywork_train_time_seconds", before + seconds, state=state)

    def _update(self, **values: object) -> None:
        self._values = self._values.model_copy(update=values)
        self._write(metrics=time.monotonic() - self._written >= _WRITE_EVERY_SECONDS)

    def _write(self, *, metrics: bool) -> None:
        folder, leads = self._place.state_dir, self._place.rank == 0
        if leads:
            self._values = self._values.model_copy(update={"time": time.time(), "spent": self._spending.seconds()})
            write_atomically(folder / "progress.json", self._values.model_dump_json().encode())
        if metrics:
            write_atomically(folder / f"worker-{self._place.local_rank}.prom", self._worker.exposition())
            # Not before it is known what counters had come to: a fall to zero and back would count all of it twice.
            if leads and self._restored:
                self._count_time()
                write_atomically(folder / "metrics.prom", self._run.exposition())
            self._written = time.monotonic()
