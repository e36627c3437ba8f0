"""How many runs the operator brings to training, and at what cost, beside Kubeflow's training-operator v1.8.1.

Nodes are kwok's, agents answer at the HTTP level: nothing trains, so nothing but the operators is in the way.
"""

import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.bench.figures import Figure, Goal, Peer, say
from dev.bench.kubeflow import NAME, PATH, Kubeflow, is_active, manifest
from dev.bench.load import Outcome, workbench
from dev.cluster import processes
from dev.cluster.paths import ROOT
from dev.simulation import Simulation

_PATH = ("skywork.dev", "v1alpha1", "skyworkruns")
_METRICS_PORT, _HEALTH_PORT = 19401, 19402


@dataclass(frozen=True)
class Size:
    """One load."""

    runs: int
    pods: int
    """Of each run."""
    shipped: bool = True
    """Whether the peer takes part as it is shipped, too: it makes 2.5 jobs a second at most."""
    unlimited: bool = True
    limit_seconds: float = 900
    quiet_seconds: float = 30

    def __str__(self) -> str:
        return f"{self.runs}_runs_of_{self.pods}"


_SIZES = (Size(100, 4), Size(1000, 4, shipped=False), Size(5000, 1, shipped=False, limit_seconds=1800), Size(1, 2000))
_QUICK = (Size(20, 4, quiet_seconds=10),)


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """The figures of every size."""
    for size in _QUICK if quick else _SIZES:
        yield from _measure(folder, size)


def _measure(folder: Path, size: Size) -> Iterator[Figure]:
    say(f"{size.runs} runs of {size.pods} pods: ours")
    ours = _ours(folder / "ours", size)
    rate = size.runs / ours.seconds
    absent = None, Peer(name=NAME, missing="not at this size")
    lifted = _beside(folder / "unlimited", size, unlimited=True) if size.unlimited else absent
    shipped = _beside(folder / "shipped", size, unlimited=False) if size.shipped else absent
    # What it costs is told of the quicker of the two that came to train.
    theirs = lifted if lifted[0] is not None else shipped
    many = {"unit": "runs/s", "values": [rate], "less_is_better": False}
    yield Figure(figure=f"{size}.rate", peer=shipped[1], goal=Goal(of="ratio", at_least=2), **many)  # type: ignore[arg-type]
    yield Figure(figure=f"{size}.rate_unlimited", peer=lifted[1], goal=Goal(of="ratio", at_least=1), **many)  # type: ignore[arg-type]
    yield Figure(figure=f"{size}.create_to_training", unit="s", values=[ours.seconds], peer=_of(*theirs, "seconds"))
    for name, unit in (("writes", "per run"), ("requests", "per run"), ("cpu_seconds", "s per run")):
        value, peer = getattr(ours, name) / size.runs, _of(*theirs, name, size.runs)
        goal = Goal(of="ratio", at_least=1) if name == "writes" else None
        yield Figure(figure=f"{size}.{name}", unit=unit, values=[value], peer=peer, goal=goal)
    goal = Goal(of="value", at_most=250) if 1 < size.runs <= 1000 else None
    yield Figure(figure=f"{size}.memory", unit="MiB", values=[ours.peak_mib], peer=_of(*theirs, "peak_mib"), goal=goal)
    yield Figure(
        figure=f"{size}.quiet_writes", unit=f"in {size.quiet_seconds:.0f} s", values=[ours.quiet_writes],
        peer=_of(*theirs, "quiet_writes"), goal=Goal(of="value", at_most=0),
    )  # fmt: skip
    for quantile, seconds in _passes(ours.pages["metrics"]).items():
        yield Figure(figure=f"{size}.reconcile_{quantile}", unit="s at most", values=[seconds])


def _beside(folder: Path, size: Size, *, unlimited: bool) -> tuple[Outcome | None, Peer]:
    """What the peer came to, and its rate; none where it does not come to train within the time that ours is given."""
    name = f"{NAME}, limit lifted, 10 threads" if unlimited else f"{NAME} as shipped"
    say(f"{size.runs} jobs of {size.pods} pods: {name}")
    try:
        outcome = _theirs(folder, size, unlimited=unlimited)
    except RuntimeError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return None, Peer(name=name, missing=str(error))
    return outcome, Peer(name=name, values=[size.runs / outcome.seconds])


def _of(outcome: Outcome | None, peer: Peer, name: str, runs: int = 1) -> Peer:
    """Another figure of a peer whose rate is known, or why it has none."""
    return peer if outcome is None else Peer(name=peer.name, values=[getattr(outcome, name) / runs])


def _ours(folder: Path, size: Size) -> Outcome:
    folder.mkdir()
    with workbench(folder, pods=size.runs * size.pods) as bench:
        bench.kubectl("create", "-f", str(ROOT / "manifests/crd"))
        # Agents stand at one step: a status that says how far training is would be written again and again.
        with Simulation(bench.plane.kubeconfig, kubelets=False, steps_per_second=0.0):
            command = [sys.executable, "-m", "skywork_operator", "--trainer-image=none", "--log-level=WARNING"]
            ports = [f"--metrics-port={_METRICS_PORT}", f"--health-port={_HEALTH_PORT}"]
            variables = {"KUBECONFIG": str(bench.kubeconfig), "POD_NAMESPACE": "default"}
            bench.start_operator([*command, *ports], variables)
            processes.wait("the operator", lambda: bool(_page("healthz")), 60, folder / "operator.log", bench.operator)
            outcome = bench.load(
                _PATH,
                [_run(number, size.pods) for number in range(size.runs)],
                lambda status: _all_train(status, size.pods),
                limit_seconds=size.limit_seconds,
                quiet_seconds=size.quiet_seconds,
                pages=lambda: {"metrics": _page("metrics")},
            )
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _theirs(folder: Path, size: Size, *, unlimited: bool) -> Outcome:
    folder.mkdir()
    with workbench(folder, pods=size.runs * size.pods) as bench:
        peer = Kubeflow(bench, unlimited=unlimited)
        peer.start()
        outcome = bench.load(
            PATH,
            [manifest(f"job-{number:04}", size.pods) for number in range(size.runs)],
            lambda status: is_active(status, size.pods),
            limit_seconds=size.limit_seconds,
            quiet_seconds=size.quiet_seconds,
        )
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _run(number: int, pods: int) -> dict[str, Any]:
    spec = {
        "model": {"preset": "tiny"},
        "tokenizer": {"uri": "s3://data/tokenizer"},
        "trainer": {"nodes": {"min": pods, "max": pods}},
        "batch": {"sequenceLength": 128, "globalTokens": str(128 * pods)},
        "sources": [{"name": "main", "uri": "s3://data/main"}],
        "checkpoints": {"uri": f"s3://runs/{number}"},
        "stages": [
            {
                "name": "general",
                "tokens": "100G",
                "learningRate": {"schedule": "Cosine", "peak": "3e-4", "final": "3e-5"},
                "mixture": [{"source": "main"}],
            }
        ],
    }
    return {
        "apiVersion": "skywork.dev/v1alpha1",
        "kind": "SkyworkRun",
        "metadata": {"name": f"run-{number:04}", "namespace": "default"},
        "spec": spec,
    }


def _all_train(status: dict[str, Any], pods: int) -> bool:
    return status.get("state") == "Training" and status.get("nodes", {}).get("training") == pods


def _page(name: str) -> str:
    port = _METRICS_PORT if name == "metrics" else _HEALTH_PORT
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def _passes(metrics: str) -> dict[str, float]:
    """Upper bounds of the buckets that half, and 99 of 100, of the reconcile passes fall into."""
    found = re.findall(r'skywork_operator_reconcile_duration_seconds_bucket\{le="([^"]+)"\} (\S+)', metrics)
    buckets = [(float(bound), float(count)) for bound, count in found]
    total = buckets[-1][1]
    return {
        name: next(bound for bound, count in buckets if count >= share * total)
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
