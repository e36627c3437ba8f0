"""The Prometheus families of one process, named once in a table; and the sums that outlive the process."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_Table = Mapping[str, tuple[str, ...]]
"""Help text and labels by name; counters without their suffix."""


class Families:
    """Gauges, counters and histograms that share a set of labels with fixed values."""

    def __init__(
        self,
        labels: Mapping[str, str],
        *,
        gauges: _Table,
        counters: _Table,
        histograms: Mapping[str, tuple[str, tuple[float, ...]]] | None = None,
    ) -> None:
        self._labels = dict(labels)
        self._registry = CollectorRegistry()
        names = tuple(self._labels)
        self._gauges = {
            name: Gauge(name, text, (*names, *own), registry=self._registry) for name, (text, *own) in gauges.items()
        }
        self._counters = {
            name: Counter(name, text, (*names, *own), registry=self._registry)
            for name, (text, *own) in counters.items()
        }
        self._histograms = {
            name: Histogram(name, text, names, buckets=buckets, registry=self._registry)
            for name, (text, buckets) in (histograms or {}).items()
        }
        self._sums: dict[tuple[str, tuple[str, ...]], float] = {}
        for name, (_, *own) in counters.items():
            # What has not happened is zero, not absent: a rate needs to see the first time.
            if not own:
                self.add(name, 0.0)
        for histogram in self._histograms.values():
            histogram.labels(**self._labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gauges[name].labels(**self._labels, **labels).set(value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Raise a counter by so much."""
        self._counters[name].labels(**self._labels, **labels).inc(amount)
        key = (name, tuple(labels.values()))
        self._sums[key] = self._sums.get(key, 0.0) + amount

    def raise_to(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter to a value; it never falls."""
        self.add(name, max(value - self._sums.get((name, tuple(labels.values())), 0.0), 0.0), **labels)

    def observe(self, name: str, value: float) -> None:
        """Add one observation to a histogram."""
        self._histograms[name].labels(**self._labels).observe(value)

    def totals(self, names: frozenset[str]) -> dict[str, float]:
        """Return the sums of some counters as one flat table, for `resume` in another process."""
        return {"/".join((name, *own)): value for (name, own), value in self._sums.items() if name in names}

    def resume(self, totals: Mapping[str, float], names: frozenset[str]) -> None:
        """Go on from the sums of a process before this one; what it does not know of them is passed over."""
        for key, value in totals.items():
            name, *own = key.split("/")
            if name not in names or name not in self._counters:
                continue
            labels = self._counters[name]._labelnames[len(self._labels) :]
            if len(labels) == len(own):
                self.raise_to(name, value, **dict(zip(labels, own, strict=True)))

    def exposition(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)
