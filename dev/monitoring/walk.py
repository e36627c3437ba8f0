"""Runs every committed expression against a Prometheus, tells which have no data: `python -m dev.monitoring.walk`."""

import argparse
import json
import math
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dev.monitoring.expressions import Expression, expressions
from dev.monitoring.sometimes import may_be_empty

_MOST_POINTS = 5000
_ANY = ".+"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a person looks at: a run, and a span of time in Unix seconds."""

    namespace: str
    run: str
    start: float
    end: float
    rate_interval: str = "1m"

    def variables(self) -> dict[str, str]:
        """Return the value of every variable; of those with several, all are chosen."""
        return {
            "namespace": self.namespace,
            "run": self.run,
            "stage": _ANY,
            "node": _ANY,
            "__rate_interval": self.rate_interval,
        }

    @property
    def step_seconds(self) -> int:
        """Return the distance of two points: as near as Prometheus allows for the span."""
        return max(math.ceil((self.end - self.start) / _MOST_POINTS), 1)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What came of all expressions, by where they are read."""

    filled: tuple[str, ...]
    empty: tuple[str, ...]
    """Without data, and expected to have some."""
    quiet: tuple[str, ...]
    """Without data, as while all is well."""

    def summary(self) -> dict[str, Any]:
        """Return it for a report: how many had data, and the names of the others."""
        return {"filled": len(self.filled), "empty": list(self.empty), "quiet": list(self.quiet)}


class QueryError(RuntimeError):
    """Prometheus refused an expression."""


def walk(address: str, shown: Shown, committed: Sequence[Expression] | None = None) -> Walk:
    """Execute all expressions over the span; raises QueryError in Prometheus' words for one that it refuses.

    An instant query shows what holds at the end of a span. Here each is asked for all of it: a person may look at any
    moment of a run.
    """
    filled, empty, quiet = [], [], []
    for expression in expressions() if committed is None else committed:
        if ranged(address, expression, shown):
            filled.append(expression.where)
        elif may_be_empty(expression.where):
            quiet.append(expression.where)
        else:
            empty.append(expression.where)
    return Walk(filled=tuple(filled), empty=tuple(empty), quiet=tuple(quiet))


def ranged(address: str, expression: Expression, shown: Shown) -> list[dict[str, Any]]:
    """Return the series of an expression over the span; raises QueryError in Prometheus' words if it is refused."""
    asked = {
        "query": expression.filled(shown.variables()),
        "start": f"{shown.start:.3f}",
        "end": f"{shown.end:.3f}",
        "step": str(shown.step_seconds),
    }
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/v1/query_range", data=urllib.parse.urlencode(asked).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:500]
        raise QueryError(f"{expression.where}: {asked['query']}: {said}") from error
    return [series for series in found if series["values"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what has no data; 0 when nothing is missing, 1 when something is."""
    parser = argparse.ArgumentParser(prog="python -m dev.monitoring.walk", description=__doc__)
    parser.add_argument("address", help="address of a Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--start", type=float, required=True, help="Unix seconds")
    parser.add_argument("--end", type=float, required=True, help="Unix seconds")
    parser.add_argument("--rate-interval", default="1m")
    options = parser.parse_args(argv)
    found = walk(
        options.address,
        Shown(
            namespace=options.namespace,
            run=options.run,
            start=options.start,
            end=options.end,
            rate_interval=options.rate_interval,
        ),
    )
    print(json.dumps(found.summary(), indent=2))
    return 1 if found.empty else 0


if __name__ == "__main__":
    sys.exit(main())
