"""Runs on simulated nodes and agents: what tests apply, wait for and remove."""

import json
from typing import Any

from dev.demo.kube import Kube
from dev.simulation import SimulatedPod, Simulation
from tests.control_plane.running import Operator, status
from tests.control_plane.test_crd import changed, manifest
from tests.waiting import until

# Replacements are waited for: a busy machine's scheduler may take longer than a short shrinkAfter.
NODES = {"min": 2, "max": 3, "shrinkAfter": "1m", "growAfter": "1h"}


def run_manifest(namespace: str, **changes: Any) -> dict[str, Any]:
    return manifest(namespace, changed("trainer.nodes", NODES) | changes)


def trains(
    kube: Kube, namespace: str, *, nodes: int = 3, after: int = 0, within_seconds: float = 120
) -> dict[str, Any]:
    """The status once a generation after `after` trains on so many nodes."""

    def found() -> dict[str, Any] | None:
        said = status(kube, namespace)
        assert said.get("state") != "Failed", said["conditions"]
        here = said.get("state") == "Training" and said["nodes"]["training"] == nodes
        return said if here and said["generation"] > after else None

    try:
        seen: dict[str, Any] = until(found, within_seconds)
    except AssertionError:
        print(json.dumps(status(kube, namespace), indent=1))
        print(kube.run("get", "pods", "-n", namespace, "-o", "wide"))
        raise
    return seen


def member(simulation: Simulation, namespace: str, rank: int) -> SimulatedPod:
    """The pod of a node rank in the newest generation."""
    placed = [p for p in simulation.of(namespace) if p.membership is not None]
    newest = max(p.membership.generation for p in placed if p.membership)
    return next(p for p in placed if p.membership and (p.membership.generation, p.membership.rank) == (newest, rank))


def remove(kube: Kube, namespace: str) -> None:
    kube.run("delete", "skyworkrun", "-n", namespace, "demo", "--ignore-not-found")
    until(lambda: not kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run=demo"), 60)


def reason(kube: Kube, namespace: str, type: str = "Running") -> str:
    found = [c["reason"] for c in status(kube, namespace).get("conditions", []) if c["type"] == type]
    return str(found[0]) if found else ""


def passes(operator: Operator) -> float:
    name = 'skywork_operator_reconcile_total{result="ok"}'
    lines = [line for line in operator.page(operator.metrics, "/metrics").splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0
