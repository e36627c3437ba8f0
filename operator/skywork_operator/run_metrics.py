"""Prometheus families of the runs, out of their statuses: what a run said last stays until it is deleted."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from skywork_trainer.config import Spent

from skywork_operator.api.status import SkyworkRunStatus, StageStatus
from skywork_operator.policies import goodput, report
from skywork_operator.policies.conditions import find
from skywork_operator.policies.recovery import PARTS
from skywork_operator.times import seconds
from skywork_operator.world import Key

_RUN = ["namespace", "run"]
_GAUGES: dict[str, tuple[str, list[str]]] = {
    "state_info": ("State of the run, as kubectl shows it.", ["state"]),
    "stage_info": ("Stage being trained.", ["stage"]),
    "condition": ("1 for the status that a condition has.", ["type", "status"]),
    "step": ("Steps that are done.", []),
    "tokens": ("Tokens trained in all stages.", []),
    "tokens_target": ("Tokens of all stages.", []),
    "progress_ratio": ("Part of all stages' tokens that is trained.", []),
    "start_timestamp_seconds": ("When the first stage started.", []),
    "estimated_completion_timestamp_seconds": ("When training will end; absent unless it trains.", []),
    "generation": ("Newest generation.", []),
    "nodes": ("Nodes of the run by state.", ["state"]),
    "train_loss": ("Newest training loss, nats per token.", []),
    "learning_rate": ("Newest learning rate.", []),
    "tokens_per_second": ("Newest throughput over all nodes.", []),
    "model_flops_utilization_ratio": ("Model FLOPs as a share of the devices' peak.", []),
    "validation_loss": ("Newest validation loss of a held-out domain, nats per token.", ["domain"]),
    "validation_bpb": ("The same as bits per byte of text.", ["domain"]),
    "validation_reference_loss": ("The same as nats per token of the reference tokenizer.", ["domain"]),
    "validation_average_loss": ("Mean of all domains' newest losses, each counting alike.", []),
    "validation_average_perplexity": ("exp of the mean of the domains' log perplexities.", []),
    "validation_step": ("Step of the newest validation.", []),
    "stage_start_validation_loss": ("Loss of a domain before the first step of the current or last stage.", ["domain"]),
    "goodput_ratio": ("Part of the time since the start in which steps were trained that count.", []),
    "last_checkpoint_timestamp_seconds": ("When the newest checkpoint was committed.", []),
    "last_checkpoint_step": ("Step of the newest checkpoint.", []),
    "checkpoint_interval_seconds": ("Time between two checkpoints that the spec asks for; absent unless a time.", []),
    "source_share": ("Realised share of a source in the current or last stage.", ["source"]),
    "source_epochs": ("How often the run has read a source.", ["source"]),
    "recovery_seconds": ("Newest recovery, by part; total is their sum.", ["part"]),
    "straggler_slowdown": ("Times as long as the median that a slow node computes.", ["node"]),
    "avoided_nodes": ("Nodes that the run's pods stay away from.", []),
}  # fmt: skip


class IdleTime:
    """Idle seconds as a counter: time that counted as idle and is then heard to have been work is not taken back.

    A counter that falls would look like one that began anew. What it is ahead by, it waits for.
    """

    def __init__(self) -> None:
        self._most: dict[Key, tuple[str, float]] = {}

    def counted(self, key: Key, start: str, idle: float) -> float:
        """The counter of a run that started at `start`, given its idle seconds by the newest account."""
        before = self._most.get(key)
        most = max(idle, before[1]) if before is not None and before[0] == start else idle
        self._most[key] = (start, most)
        return most

    def forget(self, runs: Mapping[Key, object]) -> None:
        """Drop all that is not among `runs`."""
        self._most = {key: kept for key, kept in self._most.items() if key in runs}


def run_metrics(runs: Mapping[Key, SkyworkRunStatus], now: float, idle: IdleTime) -> Iterable[Metric]:
    """The families of all runs, at `now` in Unix seconds."""
    gauges = {
        name: GaugeMetricFamily(f"skywork_run_{name}", text, labels=_RUN + labels)
        for name, (text, labels) in _GAUGES.items()
    }
    restarts = CounterMetricFamily(
        "skywork_run_restarts", "Generations that ended early, by reason.", labels=[*_RUN, "reason"]
    )
    spent = CounterMetricFamily(
        "skywork_run_time_seconds", "Time since the run's start by state; together all of it.", labels=[*_RUN, "state"]
    )
    idle.forget(runs)
    for key, status in runs.items():
        for name, labels, value in (*_training(status), *_validation(status), *_resources(status)):
            gauges[name].add_metric([*key, *labels], value)
        for entry in status.restarts.by_reason:
            restarts.add_metric([*key, entry.reason], entry.count)
        if status.time is not None and status.start_time is not None:
            time = goodput.until(status.time, _accounted(status, now))
            for state, took in goodput.by_state(time).items():
                rest = idle.counted(key, status.start_time, took) if state is Spent.IDLE else took
                spent.add_metric([*key, state.value], rest)
            ratio = goodput.ratio(time)
            if ratio is not None:
                gauges["goodput_ratio"].add_metric([*key], ratio)
    return [*gauges.values(), restarts, spent]


Sample = tuple[str, list[str], float]


def _training(status: SkyworkRunStatus) -> Iterable[Sample]:
    if status.state:
        yield "state_info", [status.state], 1
    if status.stage:
        yield "stage_info", [status.stage], 1
    for said in status.conditions:
        for value in ("True", "False", "Unknown"):
            yield "condition", [said.type, value], float(said.status == value)
    yield "step", [], status.step
    yield "tokens", [], status.tokens
    if status.target_tokens:
        yield "tokens_target", [], status.target_tokens
        yield "progress_ratio", [], status.tokens / status.target_tokens
    if status.start_time is not None:
        yield "start_timestamp_seconds", [], seconds(status.start_time)
    if status.estimated_completion is not None:
        yield "estimated_completion_timestamp_seconds", [], seconds(status.estimated_completion)
    yield "generation", [], status.generation
    yield "tokens_per_second", [], status.tokens_per_second
    for name, text in (
        ("train_loss", status.train_loss),
        ("learning_rate", status.learning_rate),
        ("model_flops_utilization_ratio", status.model_flops_utilization),
    ):
        if text is not None:
            yield name, [], float(text)


def _validation(status: SkyworkRunStatus) -> Iterable[Sample]:
    for domain in status.validation_loss:
        for name, text in (
            ("validation_loss", domain.loss),
            ("validation_bpb", domain.bits_per_byte),
            ("validation_reference_loss", domain.reference_loss),
        ):
            if text is not None:
                yield name, [domain.domain], float(text)
    if status.validation_loss:
        yield "validation_step", [], max(domain.step for domain in status.validation_loss)
    if status.val_loss is not None:
        yield "validation_average_loss", [], float(status.val_loss)
    if status.average_perplexity is not None:
        yield "validation_average_perplexity", [], float(status.average_perplexity)
    stage = _newest_stage(status)
    for moved in stage.validation_loss if stage is not None else ():
        if moved.start is not None:
            yield "stage_start_validation_loss", [moved.domain], float(moved.start)
    for source in stage.mixture if stage is not None else ():
        yield "source_share", [source.source], float(source.share)
    for read in status.sources:
        if read.epochs is not None:
            yield "source_epochs", [read.name], float(read.epochs)


def _resources(status: SkyworkRunStatus) -> Iterable[Sample]:
    for state in ("desired", "ready", "training"):
        yield "nodes", [state], getattr(status.nodes, state)
    if status.last_checkpoint is not None:
        yield "last_checkpoint_timestamp_seconds", [], seconds(status.last_checkpoint.time)
        yield "last_checkpoint_step", [], status.last_checkpoint.step
    if status.checkpoint_interval_seconds is not None:
        yield "checkpoint_interval_seconds", [], status.checkpoint_interval_seconds
    yield "avoided_nodes", [], sum(entry.avoided for entry in status.node_strikes)
    for slow in status.stragglers:
        yield "straggler_slowdown", [slow.node], float(slow.slowdown)
    for part in (*PARTS, "total"):
        took = getattr(status.recovery, part, None)
        if took is not None:
            yield "recovery_seconds", [part], float(took)


def _newest_stage(status: SkyworkRunStatus) -> StageStatus | None:
    named = report.stage_record(status, status.stage) if status.stage else None
    return named or (status.stages[-1] if status.stages else None)


def _accounted(status: SkyworkRunStatus, now: float) -> float:
    """The time to account for: all of it while nothing trains, else up to what was heard last.

    What a world at work has not said yet will be said; until then it is in no state.
    """
    running = find(status.conditions, "Running")
    if running is None or running.status != "True" or status.time is None:
        return goodput.wall_seconds(status, now)
    return sum(goodput.by_state(status.time).values())
