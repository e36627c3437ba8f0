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
class Figure:
    """Repeated measurements of one thing, and of the same thing done by a peer."""

    figure: str
    unit: str
    values: Sequence[float]
    less_is_better: bool = True
    peer: str | None = None
    """Who else was measured, or why nobody was."""
    peer_values: Sequence[float] = ()
    goal: Goal | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def peer_value(self) -> float | None:
        """The peer's median."""
        return statistics.median(self.peer_values) if self.peer_values else None

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer's the value is."""
        if self.peer_value is None:
            return None
        ours, theirs = (self.peer_value, self.value) if self.less_is_better else (self.value, self.peer_value)
        return ours / theirs if theirs else None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None without one, or where the peer that it speaks of is missing."""
        number = self.value if self.goal is None or self.goal.of == "value" else self.ratio
        return None if self.goal is None or number is None else self.goal.holds(number)

    def to_json(self) -> str:
        """Return the figure as one line."""
        fields: dict[str, object] = {
            "figure": self.figure,
            "value": _short(self.value),
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": _short(self.peer_value),
            "ratio": _short(self.ratio),
            "goal": str(self.goal) if self.goal else None,
            "holds": self.holds,
        }
        for name, values in (("", self.values), ("peer_", self.peer_values)):
            if len(values) > 1:
                fields |= {f"{name}min": _short(min(values)), f"{name}max": _short(max(values))}
        return json.dumps(fields | {"repeats": len(self.values)})


def tell(figure: Figure) -> None:
    """Print a figure on standard output."""
    print(figure.to_json(), flush=True)


def say(line: str) -> None:
    """Print progress on standard error: standard output is for figures."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")
