"""What workers tell the world, by files that appear whole, by rename; the agent serves them.

Rank 0 writes `progress.json` for the operator and `metrics.prom` for Prometheus; their counters are derived from the
step, so they go on where they were after a restart. Every worker writes `worker-<local rank>.prom`: what its data cost.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from skywork_trainer.config import DomainLoss, Place, Progress, RunConfig, Section
from skywork_trainer.flops import flops_per_token, peak_flops_per_second
from skywork_trainer.heartbeat import Heartbeat
from skywork_trainer.traffic import Traffic

_FORWARD_WEIGHT = 0.1
"""Of the newest step: a slow machine is one that stays slow."""
_WRITE_EVERY_SECONDS = 0.5
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 300)
_STALL_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_COMMON = ("namespace", "run", "stage")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file whole; readers see the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


class Reporter:
    """Keeps this worker's progress; what is the same on all ranks only rank 0 writes."""

    def __init__(self, config: RunConfig, place: Place) -> None:
        self._config, self._place = config, place
        self._folder = config.checkpoints.uri.rstrip("/") + "/checkpoints"
        self._values = Progress()
        self._section = Section.INIT
        self._heartbeat = Heartbeat(place.state_dir, place.local_rank)
        self._forward_seconds = 0.0
        self._registry = CollectorRegistry()
        self._labels = {"namespace": config.namespace, "run": config.run, "stage": config.stage}
        self._counted: dict[tuple[str, ...], float] = {}
        self._written = 0.0
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._loss = self._gauge("skywork_train_loss", "Training loss of the newest step (nats per token).")
        self._rate = self._gauge("skywork_train_learning_rate", "Learning rate of the newest step.")
        self._norm = self._gauge("skywork_train_grad_norm", "Gradient norm before clipping.")
        self._speed = self._gauge("skywork_train_tokens_per_second", "Tokens trained per second, newest step.")
        self._flops = self._gauge(
            "skywork_train_model_flops_per_second", "Model FLOPs per second over all ranks, newest step."
        )
        self._mfu: Gauge | None = None
        self._micro_batch = self._gauge("skywork_train_micro_batch_sequences", "Sequences of one forward pass.")
        self._peak_flops = 0.0
        self._generation = self._gauge("skywork_generation", "Generation of the world that trains.")
        self._saved = self._gauge(
            "skywork_checkpoint_last_success_timestamp_seconds", "Unix time of the newest committed checkpoint."
        )
        self._save_seconds = self._gauge(
            "skywork_checkpoint_duration_seconds", "How long the newest save took, from the copy to the commit."
        )
        self._save_bytes = self._gauge("skywork_checkpoint_size_bytes", "Size of the newest checkpoint, all ranks.")
        self._flying = self._gauge("skywork_checkpoint_in_flight", "1 while a save goes on beside training.")
        self._stall = Histogram(
            "skywork_checkpoint_stall_seconds",
            "How long training stood still to copy its state for a save.",
            _COMMON,
            buckets=_STALL_BUCKETS,
            registry=self._registry,
        )
        self._commits = self._counter("skywork_checkpoint_commits", "Saves this generation has committed.")
        self._local_commits = self._counter(
            "skywork_checkpoint_local_commits", "Saves this generation has kept on the nodes only."
        )
        self._skipped = self._counter(
            "skywork_checkpoint_skipped", "Saves that were due while another was in flight, and not begun."
        )
        self._save_failures = self._counter(
            "skywork_checkpoint_failures", "Saves that came to nothing while training went on.", "reason"
        )
        self._corrupt = self._gauge(
            "skywork_checkpoint_corrupt", "Checkpoints found corrupt, and passed over, when this generation started."
        )
        self._validation_step = self._gauge("skywork_validation_step", "Step of the newest validation.")
        self._validation = self._gauge("skywork_validation_loss", "Held-out loss (nats per token).", "domain")
        self._steps = self._counter("skywork_train_steps", "Steps of the run that are done.")
        self._tokens = self._counter("skywork_train_tokens", "Tokens of the run that are trained.")
        self._sources = self._counter("skywork_source_sequences", "Sequences the stage drew from a source.", "source")
        self._source_tokens = self._counter("skywork_source_tokens", "Tokens the stage drew from a source.", "source")
        self._epochs = self._gauge("skywork_source_epochs", "How often the run has read a source.", "source")
        self._spike_count = self._counter(
            "skywork_train_spikes", "Steps of this generation whose loss was a spike, by what was done.", "action"
        )
        self._nonfinite = self._counter(
            "skywork_train_nonfinite_steps", "Steps of this generation refused for gradients that are not finite."
        )
        self._step_seconds = Histogram(
            "skywork_train_step_duration_seconds",
            "Time from one step's end to the next's.",
            _COMMON,
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        )
        self._generation.labels(**self._labels).set(place.generation)
        self._worker = _WorkerMetrics(self._labels | {"local_rank": str(place.local_rank)})

    @property
    def progress(self) -> Progress:
        """The newest progress."""
        return self._values

    def on_device(self, name: str, *, micro_batch: int) -> None:
        """Say what the ranks compute on and in micro-batches of how many sequences.

        Where the device's peak is known, its share in use is reported.
        """
        self._micro_batch.labels(**self._labels).set(micro_batch)
        self._update(micro_batch_sequences=micro_batch)
        peak = peak_flops_per_second(name)
        if peak is not None:
            self._peak_flops = peak * self._place.world_size
            self._mfu = self._gauge(
                "skywork_train_mfu_ratio", "Model FLOPs as a share of the devices' dense bf16 peak."
            )

    def section(self, section: Section) -> None:
        """Say which part of its work this worker is in."""
        self._section = section
        self.alive()
        begun = {"initialized_time": time.time()} if section is Section.RESTORE else {}
        self._update(section=section, **begun)

    def alive(self) -> None:
        """Give a sign of progress."""
        self._heartbeat.beat(self._section, self._values.step, self._forward_seconds)

    def computed(self, forward_seconds: float | None) -> None:
        """Report what the forward passes of a step took on this rank; None where that says nothing of it."""
        if forward_seconds is not None:
            before = self._forward_seconds or forward_seconds
            self._forward_seconds = before + _FORWARD_WEIGHT * (forward_seconds - before)

    def restored(
        self, *, step: int, checkpoint: str, durable: bool, created: float, corrupt: Mapping[str, str]
    ) -> None:
        """Report where this generation starts; `checkpoint` is empty for a fresh start.

        `durable` says that the checkpoint lies in the object store, and not on the nodes alone; `corrupt` why others
        were passed over, by id.
        """
        self._count_to(step)
        self._corrupt.labels(**self._labels).set(len(corrupt))
        found: dict[str, object] = {}
        if durable:
            self._saved.labels(**self._labels).set(created)
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
        self._nonfinite.labels(**self._labels).inc(not math.isfinite(norm))
        speed = self._config.global_batch_tokens / max(seconds, 1e-9)
        self._count_to(step)
        for gauge, value in ((self._loss, loss), (self._rate, rate), (self._norm, norm), (self._speed, speed)):
            gauge.labels(**self._labels).set(value)
        flops = speed * flops_per_token(self._config.model, self._config.sequence_length)
        self._flops.labels(**self._labels).set(flops)
        if self._mfu is not None:
            self._mfu.labels(**self._labels).set(flops / self._peak_flops)
        self._step_seconds.labels(**self._labels).observe(seconds)
        self._values = self._values.model_copy(update={"step": step})
        self.alive()
        self._update(
            step=step,
            first_step_time=self._values.first_step_time or time.time(),
            tokens=step * self._config.global_batch_tokens,
            train_loss=loss,
            learning_rate=rate,
            tokens_per_second=speed,
        )

    def spiked(self, action: str) -> None:
        """Report a loss far above those before it, and what is done about it."""
        self._spike_count.labels(**self._labels, action=action).inc()

    def validated(self, newest: tuple[DomainLoss, ...], *, stage_start: tuple[DomainLoss, ...]) -> None:
        """Report held-out losses: the newest, and those from before the stage's first step."""
        for domain in newest:
            self._validation.labels(**self._labels, domain=domain.domain).set(domain.loss)
            self._validation_step.labels(**self._labels).set(domain.step)
        self._update(validation=newest, stage_start_validation=stage_start)

    def drawn(self, sequences: dict[str, int], *, epochs: dict[str, float]) -> None:
        """Report how many sequences of each source the stage has drawn, and how often the run has read each."""
        for source, count in sequences.items():
            self._raise_to(self._sources, count, source=source)
            self._raise_to(self._source_tokens, count * self._config.sequence_length, source=source)
        for source, times in epochs.items():
            self._epochs.labels(**self._labels, source=source).set(times)
        self._values = self._values.model_copy(
            update={"source_sequences": dict(sequences), "source_epochs": dict(epochs)}
        )

    def read(self, *, waited_seconds: float, traffic: Traffic) -> None:
        """Report that this worker has its sequences of a step, and what all its reading has cost so far."""
        self._worker.read(waited_seconds, traffic)

    def warned(self, warnings: tuple[str, ...]) -> None:
        """Report what a person should know about the stage's data."""
        self._values = self._values.model_copy(update={"warnings": warnings})

    def save_begun(self, *, stall_seconds: float) -> None:
        """Report that training stood still for so long to copy its state, and goes on while that is stored."""
        self._stall.labels(**self._labels).observe(stall_seconds)
        self._flying.labels(**self._labels).set(1)

    def save_skipped(self) -> None:
        """Report that a save was due while another was in flight."""
        self._skipped.labels(**self._labels).inc()

    def save_failed(self, reason: str) -> None:
        """Report that a save came to nothing."""
        self._flying.labels(**self._labels).set(0)
        self._save_failures.labels(**self._labels, reason=reason).inc()

    def kept_locally(self) -> None:
        """Report a checkpoint that only the nodes keep."""
        self._flying.labels(**self._labels).set(0)
        self._local_commits.labels(**self._labels).inc()

    def saved(self, *, checkpoint: str, step: int, created: float, seconds: float, size_bytes: int) -> None:
        """Report a committed checkpoint."""
        self._flying.labels(**self._labels).set(0)
        self._commits.labels(**self._labels).inc()
        self._saved.labels(**self._labels).set(created)
        self._save_seconds.labels(**self._labels).set(seconds)
        self._save_bytes.labels(**self._labels).set(size_bytes)
        self._update(
            checkpoint=checkpoint,
            checkpoint_step=step,
            checkpoint_uri=f"{self._folder}/{checkpoint}",
            checkpoint_time=created,
        )

    def flush(self) -> None:
        """Write everything now: the last word of a generation must not fall to throttling."""
        self._write(metrics=True)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, (*_COMMON, *labels), registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*_COMMON, *labels), registry=self._registry)

    def _count_to(self, step: int) -> None:
        self._raise_to(self._steps, step)
        self._raise_to(self._tokens, step * self._config.global_batch_tokens)

    def _raise_to(self, counter: Counter, value: float, **labels: str) -> None:
        key = (str(id(counter)), *labels.values())
        counter.labels(**self._labels, **labels).inc(max(value - self._counted.get(key, 0.0), 0.0))
        self._counted[key] = max(value, self._counted.get(key, 0.0))

    def _update(self, **values: object) -> None:
        self._values = self._values.model_copy(update=values)
        self._write(metrics=time.monotonic() - self._written >= _WRITE_EVERY_SECONDS)

    def _write(self, *, metrics: bool) -> None:
        self._values = self._values.model_copy(update={"time": time.time()})
        folder, leads = self._place.state_dir, self._place.rank == 0
        if leads:
            write_atomically(folder / "progress.json", self._values.model_dump_json().encode())
        if metrics:
            write_atomically(folder / f"worker-{self._place.local_rank}.prom", self._worker.exposition())
            if leads:
                write_atomically(folder / "metrics.prom", generate_latest(self._registry))
            self._written = time.monotonic()


class _WorkerMetrics:
    """What the data of one worker process cost; counters start anew with the process."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._registry = CollectorRegistry()
        self._wait = self._counter("skywork_data_wait_seconds", "Time this worker waited for its sequences.")
        self._requests = self._counter(
            "skywork_storage_requests", "Requests to the object store, every attempt.", "operation", "code"
        )
        self._totals = {
            "fetched_parts": self._counter("skywork_data_fetched_parts", "Parts of shards fetched and verified."),
            "fetched_bytes": self._counter("skywork_data_fetched_bytes", "Bytes of those parts."),
            "cache_hits": self._counter("skywork_data_cache_hits", "Parts found on the node's disk."),
            "cache_misses": self._counter("skywork_data_cache_misses", "Parts that had to be waited for."),
            "hedged": self._counter("skywork_data_hedged_requests", "Requests made because an earlier one was slow."),
            "retried": self._counter("skywork_data_failed_requests", "Requests for parts that failed or came wrong."),
            "corrupt": self._counter("skywork_data_corrupt_answers", "Parts that came with another SHA-256."),
        }
        self._told = Traffic()

    def read(self, waited_seconds: float, traffic: Traffic) -> None:
        """Count up to `traffic`."""
        self._wait.labels(**self._labels).inc(waited_seconds)
        for name, counter in self._totals.items():
            counter.labels(**self._labels).inc(getattr(traffic, name) - getattr(self._told, name))
        for (operation, code), count in traffic.requests.items():
            more = count - self._told.requests.get((operation, code), 0)
            self._requests.labels(**self._labels, operation=operation, code=code).inc(more)
        self._told = traffic

    def exposition(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*_COMMON, "local_rank", *labels), registry=self._registry)
