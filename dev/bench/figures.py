"""One measured figure, beside a peer's and a goal."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure should reach: its value, or how many times better than the peer's it is."""

    of: Literal["value", "ratio"]
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{self.of} {bound}"

    def holds(self, number: float) -> bool:
        """Return whether the number reaches the goal."""
        return (self.at_least is None or number >= self.at_least) and (self.at_most is None or number <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who else did the same thing, and how that went."""

    name: str
    values: Sequence[float] = ()
    missing: str | None = None
    """Why there are no values."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Repeated measurements of one thing, and of the same thing done by a peer in turns with ours."""

    figure: str
    unit: str
    values: Sequence[float]
    less_is_better: bool = True
    peer: Peer | None = None
    goal: Goal | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def peer_value(self) -> float | None:
        """The peer's median."""
        return statistics.median(self.peer.values) if self.peer and self.peer.values else None

    @property
    def ratios(self) -> list[float]:
        """How many times better than the peer's the value is, in every turn; of the medians without as many turns."""
        if self.peer is None or self.peer_value is None:
            return []
        ours, theirs = self.values, self.peer.values
        if len(ours) != len(theirs):
            ours, theirs = [self.value], [self.peer_value]
        better, worse = (theirs, ours) if self.less_is_better else (ours, theirs)
        return [a / b for a, b in zip(better, worse, strict=True)] if all(worse) else []

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None without one, or where the peer that it speaks of is missing."""
        if self.goal is None:
            return None
        number = self.value if self.goal.of == "value" else self.ratio
        return None if number is None else self.goal.holds(number)

    def to_json(self) -> str:
        """Return the figure as one line."""
        peer = self.peer if self.peer and not self.peer.missing else None
        fields: dict[str, object] = {
            "figure": self.figure,
            "value": _short(self.value),
            "unit": self.unit,
            "peer": peer.name if peer else None,
            "peer_value": _short(self.peer_value),
            "ratio": _short(self.ratio),
            "goal": str(self.goal) if self.goal else None,
            "holds": self.holds,
        }
        if self.peer and self.peer.missing:
            fields["peer_missing"] = f"{self.peer.name}: {self.peer.missing}"
        for name, values in (("", self.values), ("peer_", peer.values if peer else ()), ("ratio_", self.ratios)):
            if len(values) > 1:
                fields |= {f"{name}{of.__name__}": _short(of(values)) for of in (min, statistics.median, max)}
        return json.dumps(fields | {"repeats": len(self.values)})


def say(line: str) -> None:
    """Print progress on standard error: standard output is for figures."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")
