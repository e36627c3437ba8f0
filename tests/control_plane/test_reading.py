"""What the operator asks the API server for: as little as it can while it looks, and everything before it acts."""

from pathlib import Path

import pytest

from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.proxy import Proxy, Seen
from tests.control_plane.running import Operator
from tests.control_plane.simulated import member, passes, remove, run_manifest, trains
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("untainted")


def lists_pods(seen: Seen) -> bool:
    return seen.method == "GET" and seen.path.endswith("/pods") and not seen.watching


def reads_run(seen: Seen) -> bool:
    return seen.method == "GET" and seen.path.endswith("/skyworkruns/demo")


def writes_status(seen: Seen) -> bool:
    return seen.writes and seen.path.endswith("/skyworkruns/demo/status")


def test_looking_at_a_run_again_and_again_lists_its_pods_now_and_then(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    assert simulation
    operator = Operator(between.kubeconfig, tmp_path / "operator.log")
    started.append(operator)
    kube.apply(run_manifest(namespace))
    trains(kube, namespace)
    before, listed = passes(operator), sum(map(lists_pods, list(between.passed)))
    number = 0

    def looked_at() -> bool:
        nonlocal number
        number += 1
        kube.run("annotate", "skyworkrun", "demo", "-n", namespace, f"test/look={number}", "--overwrite")
        return passes(operator) >= before + 20

    until(looked_at, 120)
    lists = sum(map(lists_pods, list(between.passed))) - listed
    assert 2 * lists < passes(operator) - before
    remove(kube, namespace)


def test_a_generation_ends_and_the_next_begins_by_what_was_read_in_the_same_pass(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    started.append(Operator(between.kubeconfig, tmp_path / "operator.log"))
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    # Behind the pass that has listed its pods, and well within the time that such a list serves.
    listed = len(between.passed)
    until(lambda: any(map(lists_pods, between.passed[listed:])), 60)
    listed = len(between.passed)
    until(lambda: any(map(writes_status, between.passed[listed:])), 60)
    seen = len(between.passed)
    simulation.fail(member(simulation, namespace, 1), "Killed", "worker rank 1 was killed by SIGKILL")
    trains(kube, namespace, after=before["generation"])
    asked = list(between.passed)
    told = next(i for i, r in enumerate(asked) if i >= seen and r.method == "PATCH" and "/pods/" in r.path)
    decided = max(i for i, request in enumerate(asked[:told]) if writes_status(request))
    # That pass may have begun before the failure.
    began = max(i for i, request in enumerate(asked[:decided]) if reads_run(request))
    assert any(map(lists_pods, asked[began:decided])), [f"{r.method} {r.path}" for r in asked[began : told + 1]]
    remove(kube, namespace)
