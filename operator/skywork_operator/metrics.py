"""Prometheus metrics of the operator: its queue, its passes, and every run's state out of the run's own status."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from skywork_operator import __version__
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.policies.recovery import PARTS
from skywork_operator.queue import WorkQueue
from skywork_operator.times import seconds

Key = tuple[str, str]
_RUN = ["namespace", "run"]


class PassMetrics:
    """Counters of reconcile passes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.passes = Counter(
            "skywork_operator_reconcile", "Reconcile passes by result.", ["result"], registry=registry
        )
        self.seconds = Histogram(
            "skywork_operator_reconcile_duration_seconds", "Duration of reconcile passes.", registry=registry
        )


class OperatorCollector(Collector):
    """Reads the queue and the newest status of every run at scrape time: a deleted run leaves no series behind."""

    def __init__(
        self, queue: WorkQueue[Key], runs: Mapping[Key, SkyworkRunStatus], watch_age_seconds: Callable[[], float]
    ) -> None:
        self._queue = queue
        self._runs = runs
        self._watch_age_seconds = watch_age_seconds

    def collect(self) -> Iterator[Metric]:
        """All families, built anew."""
        build = GaugeMetricFamily("skywork_operator_build_info", "Version of the operator.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield GaugeMetricFamily("skywork_operator_queue_depth", "Runs that wait for a worker.", len(self._queue))
        yield GaugeMetricFamily(
            "skywork_operator_queue_oldest_wait_seconds",
            "Age of the run that has waited longest for a worker.",
            self._queue.oldest_wait_seconds(),
        )
        yield CounterMetricFamily("skywork_operator_queue_adds", "Runs added to the queue.", self._queue.adds_total)
        yield CounterMetricFamily(
            "skywork_operator_queue_retries", "Passes repeated after an error.", self._queue.retries_total
        )
        yield GaugeMetricFamily(
            "skywork_operator_watch_age_seconds", "Time since the newest event of a watch.", self._watch_age_seconds()
        )
        yield from run_metrics(self._runs)


def run_metrics(runs: Mapping[Key, SkyworkRunStatus]) -> Iterable[Metric]:
    """Families of all runs' statuses; losses of a finished run stay until the run is deleted."""

    def gauge(name: str, text: str, labels: list[str] | None = None) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"skywork_run_{name}", text, labels=_RUN + (labels or []))

    step = gauge("step", "Steps that are done.")
    tokens = gauge("tokens", "Tokens trained in all stages.")
    generation = gauge("generation", "Newest generation.")
    loss = gauge("train_loss", "Newest training loss, nats per token.")
    rate = gauge("tokens_per_second", "Newest throughput over all nodes.")
    learning_rate = gauge("learning_rate", "Newest learning rate.")
    validation = gauge("validation_loss", "Newest validation loss of a held-out domain, nats per token.", ["domain"])
    nodes = gauge("nodes", "Nodes of the run by state.", ["state"])
    condition = gauge("condition", "1 for the status that a condition has.", ["type", "status"])
    stage_info = gauge("stage_info", "Stage being trained.", ["stage"])
    checkpoint = gauge("last_checkpoint_timestamp_seconds", "When the newest checkpoint was committed.")
    restarts = CounterMetricFamily(
        "skywork_run_restarts", "Generations that ended early, by reason.", labels=[*_RUN, "reason"]
    )
    recovery = gauge("recovery_seconds", "Newest recovery, by part; total is their sum.", ["part"])
    slowdown = gauge("straggler_slowdown", "Times as long as the median that a slow node computes.", ["node"])
    avoided = gauge("avoided_nodes", "Nodes that the run's pods stay away from.")
    for (namespace, name), status in runs.items():
        key = [namespace, name]
        step.add_metric(key, status.step)
        tokens.add_metric(key, status.tokens)
        generation.add_metric(key, status.generation)
        rate.add_metric(key, status.tokens_per_second)
        if status.train_loss is not None:
            loss.add_metric(key, float(status.train_loss))
        if status.learning_rate is not None:
            learning_rate.add_metric(key, float(status.learning_rate))
        for domain in status.validation_loss:
            validation.add_metric([*key, domain.domain], float(domain.loss))
        for state, count in status.nodes.model_dump().items():
            nodes.add_metric([*key, state], count)
        for said in status.conditions:
            for value in ("True", "False", "Unknown"):
                condition.add_metric([*key, said.type, value], float(said.status == value))
        if status.stage:
            stage_info.add_metric([*key, status.stage], 1)
        if status.last_checkpoint is not None:
            checkpoint.add_metric(key, seconds(status.last_checkpoint.time))
        avoided.add_metric(key, sum(entry.avoided for entry in status.node_strikes))
        for slow in status.stragglers:
            slowdown.add_metric([*key, slow.node], float(slow.slowdown))
        for part in (*PARTS, "total"):
            took = getattr(status.recovery, part, None)
            if took is not None:
                recovery.add_metric([*key, part], float(took))
        for entry in status.restarts.by_reason:
            restarts.add_metric([*key, entry.reason], entry.count)
    return [
        step, tokens, generation, loss, rate, learning_rate, validation, nodes, condition, stage_info, checkpoint,
        restarts, recovery, avoided, slowdown,
    ]  # fmt: skip
