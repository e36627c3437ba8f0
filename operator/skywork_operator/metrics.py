"""Prometheus metrics of the operator: its queue, its passes, and every run's state out of the run's own status."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from skywork_operator import __version__
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.queue import WorkQueue
from skywork_operator.run_metrics import IdleTime, run_metrics
from skywork_operator.world import Key

_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PassMetrics:
    """Counters of reconcile passes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.passes = Counter(
            "skywork_operator_reconcile", "Reconcile passes by result.", ["result"], registry=registry
        )
        self.seconds = Histogram(
            "skywork_operator_reconcile_duration_seconds",
            "Duration of reconcile passes.",
            buckets=_BUCKETS,
            registry=registry,
        )


def queue_seconds(registry: CollectorRegistry) -> Histogram:
    """Histogram of the time that runs wait for a worker."""
    return Histogram(
        "skywork_operator_queue_duration_seconds",
        "Time a run waited for a worker.",
        buckets=_BUCKETS,
        registry=registry,
    )


class OperatorCollector(Collector):
    """Reads the queue and the newest status of every run at scrape time: a deleted run leaves no series behind.

    `wall` returns Unix seconds.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        runs: Mapping[Key, SkyworkRunStatus],
        *,
        watch_age_seconds: Callable[[], float],
        leads: Callable[[], bool],
        wall: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._runs = runs
        self._watch_age_seconds, self._leads, self._wall = watch_age_seconds, leads, wall
        self._idle = IdleTime()

    def collect(self) -> Iterator[Metric]:
        """All families, built anew."""
        build = GaugeMetricFamily("skywork_operator_build_info", "Version of the operator.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield GaugeMetricFamily(
            "skywork_operator_is_leader", "1 where this operator works on runs, 0 where it stands by.", self._leads()
        )
        yield GaugeMetricFamily("skywork_operator_queue_depth", "Runs that wait for a worker.", len(self._queue))
        yield GaugeMetricFamily(
            "skywork_operator_queue_oldest_wait_seconds",
            "Age of the run that has waited longest for a worker.",
            self._queue.oldest_wait_seconds(),
        )
        yield GaugeMetricFamily(
            "skywork_operator_longest_pass_seconds",
            "Age of the pass that has run longest.",
            self._queue.longest_pass_seconds(),
        )
        yield CounterMetricFamily("skywork_operator_queue_adds", "Runs added to the queue.", self._queue.adds_total)
        yield CounterMetricFamily(
            "skywork_operator_queue_retries", "Passes repeated after an error.", self._queue.retries_total
        )
        yield GaugeMetricFamily(
            "skywork_operator_watch_age_seconds", "Time since the newest event of a watch.", self._watch_age_seconds()
        )
        yield from run_metrics(self._runs, self._wall(), self._idle)
