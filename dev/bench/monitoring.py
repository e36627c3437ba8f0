"""What watching training costs it: reports, curve records, diagnosis and requests, as a share of the demo's steps."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dev.bench.figures import Figure, Goal, say
from dev.cluster.paths import ROOT

_REPEATS, _STEPS = 3, 150


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """The share of time, and the time itself."""
    told = [_once(20 if quick else _STEPS) for _ in range(1 if quick else _REPEATS)]
    shares = [one["share"] for one in told]
    yield Figure(figure="monitoring.share_of_step", unit="of 1", values=shares, goal=Goal(of="value", at_most=0.01))
    # On a machine that does other things as well, waiting for a core counts above, and not here.
    cpu = [one["cpu_share"] for one in told]
    yield Figure(figure="monitoring.share_of_cpu", unit="of 1", values=cpu, goal=Goal(of="value", at_most=0.01))
    yield Figure(figure="monitoring.per_step", unit="ms", values=[one["monitoring_seconds"] * 1e3 for one in told])
    yield Figure(figure="monitoring.step", unit="ms", values=[one["step_seconds"] * 1e3 for one in told])


def _once(steps: int) -> dict[str, float]:
    say(f"{steps} steps of the demo's model, with a validation of five domains every 50")
    command = [sys.executable, "-m", "dev.bench.monitor_once", str(steps)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
