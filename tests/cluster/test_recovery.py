"""Dead nodes, hung workers, spares, suspension and resizing, on real kubelets."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from dev.cluster import freezing
from dev.demo import faults, install
from dev.demo.environment import Environment
from dev.demo.install import RUN_NAMESPACE
from tests.cluster import runs
from tests.waiting import until

STEPS = 60


def node_number(pod: dict[str, Any]) -> int:
    return int(pod["spec"]["nodeName"].removeprefix("node-"))


def is_ready(environment: Environment, number: int) -> bool:
    conditions = environment.kube.get("node", f"node-{number}")["status"]["conditions"]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def operator_node(environment: Environment) -> str:
    """Node of the operator that is not on its way out."""
    labels = ["-n", install.OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-operator"]
    (name,) = [
        pod["spec"]["nodeName"]
        for pod in environment.kube.items("pods", *labels)
        if "deletionTimestamp" not in pod["metadata"]
    ]
    return str(name)


@pytest.fixture
def thawed(environment: Environment) -> Iterator[None]:
    """Whatever a test freezes comes back."""
    yield
    for number in (1, 2, 3):
        freezing.thaw(number)
    until(lambda: all(is_ready(environment, number) for number in (1, 2, 3)))


def recovered(environment: Environment, name: str, *, after: int) -> dict[str, Any]:
    """The record of a recovery from a generation `after` or later, once a step is done."""

    def found() -> dict[str, Any] | None:
        status = runs.get(environment, name)
        assert status.get("state") != "Failed", status["conditions"]
        record: dict[str, Any] = status.get("recovery", {})
        return record if record.get("generation", 0) > after and "firstStep" in record else None

    record: dict[str, Any] = until(found)
    print({part: record.get(part) for part in (*runs.PARTS, "total")})
    return record


def reasons(environment: Environment, name: str) -> dict[str, int]:
    return {entry["reason"]: entry["count"] for entry in runs.get(environment, name)["restarts"].get("byReason", [])}


def assert_nothing_lost(environment: Environment, name: str, steps: int = STEPS) -> None:
    counted = runs.audit(environment, name)
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (steps, 0, 0)


@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize("with_operator", [False, True], ids=["operator elsewhere", "operator there"])
def test_a_dead_node_s_pod_is_replaced_and_the_node_s_return_does_no_harm(
    environment: Environment, with_operator: bool
) -> None:
    run = runs.manifest("frozen", steps=STEPS)
    run["spec"]["trainer"]["nodes"] = {"min": 2, "max": 3, "shrinkAfter": "0s", "growAfter": "5s"}
    runs.start(environment, run)
    before = runs.at_step(environment, "frozen", 10)
    pods = runs.pods(environment, "frozen")
    operator = operator_node(environment)
    dead = next(pod for pod in pods[::-1] if (pod["spec"]["nodeName"] == operator) is with_operator)
    survivors = {p["metadata"]["uid"] for p in pods} - {dead["metadata"]["uid"]}
    freezing.freeze(node_number(dead))
    record = recovered(environment, "frozen", after=before["generation"])
    assert record["reason"] == "NodeLost"
    assert runs.get(environment, "frozen")["nodes"]["training"] >= 2
    # Nobody deleted anything by hand: the replacement comes, elsewhere, and the world takes it in.
    until(lambda: runs.get(environment, "frozen")["nodes"]["training"] == 3)
    grown = runs.pods(environment, "frozen")
    assert dead["spec"]["nodeName"] not in {p["spec"].get("nodeName") for p in grown}
    assert survivors < {p["metadata"]["uid"] for p in grown}
    generation = runs.get(environment, "frozen")["generation"]
    # The zombie's world moved on twice; awake again it finds its pod gone, and nobody listens to it.
    freezing.thaw(node_number(dead))
    until(lambda: is_ready(environment, node_number(dead)))
    runs.finished(environment, "frozen")
    assert operator_node(environment) != (dead["spec"]["nodeName"] if with_operator else "")
    assert runs.get(environment, "frozen")["generation"] == generation
    assert reasons(environment, "frozen") == {"NodeLost": 1}
    assert_nothing_lost(environment, "frozen")
    runs.remove(environment, "frozen")


def test_a_worker_that_hangs_is_found_with_its_stack_and_training_goes_on(environment: Environment) -> None:
    limits = {"stepTimeout": "4s", "validateTimeout": "30s", "saveTimeout": "30s"}
    runs.start(environment, runs.manifest("hung", steps=STEPS, hangDetection=limits))
    before = runs.at_step(environment, "hung", 10)
    victim = runs.pods(environment, "hung")[1]
    faults.signal_worker(environment.kube, RUN_NAMESPACE, victim, "SIGSTOP")
    record = recovered(environment, "hung", after=before["generation"])
    assert record["reason"] == "Hang"
    listed = environment.kube.items("events", "-n", RUN_NAMESPACE, "--field-selector", "reason=Hang")
    message = next(e["message"] for e in listed if e["involvedObject"]["name"] == "hung")
    # Who stands still outside a collective is named first; the others wait for it.
    assert "ended: rank 1 has shown no progress" in message and "it is stopped" in message
    assert "rank 0" in message and "all_reduce" in message
    logs = environment.kube.run("logs", "-n", RUN_NAMESPACE, runs.pods(environment, "hung")[0]["metadata"]["name"])
    assert "stacks of worker 0" in logs and "_train_step" in logs
    runs.finished(environment, "hung")
    assert reasons(environment, "hung") == {"Hang": 1}
    assert_nothing_lost(environment, "hung")
    runs.remove(environment, "hung")


def test_a_spare_takes_over_from_a_deleted_pod_without_waiting_for_its_replacement(environment: Environment) -> None:
    run = runs.manifest("spared", steps=STEPS, nodes=2)
    run["spec"]["trainer"]["nodes"]["spares"] = 1
    runs.start(environment, run)
    before = runs.at_step(environment, "spared", 10)
    victim, other, spare = runs.pods(environment, "spared")
    until(lambda: _standby(environment, spare))
    faults.delete_pod(environment.kube, RUN_NAMESPACE, victim)
    recovered(environment, "spared", after=before["generation"])
    uids = {p["metadata"]["uid"] for p in runs.pods(environment, "spared")}
    assert {other["metadata"]["uid"], spare["metadata"]["uid"]} < uids
    runs.finished(environment, "spared")
    assert reasons(environment, "spared") == {"PodLost": 1}
    assert_nothing_lost(environment, "spared")
    runs.remove(environment, "spared")


def _standby(environment: Environment, pod: dict[str, Any]) -> bool:
    said = faults.agent_status(environment.kube, RUN_NAMESPACE, pod)
    ready = environment.kube.get("pod", "-n", RUN_NAMESPACE, pod["metadata"]["name"])["status"]["conditions"]
    return said is not None and any(c["type"] == "Ready" and c["status"] == "True" for c in ready)


def _set(environment: Environment, name: str, patch: str) -> None:
    environment.kube.run("patch", "skyworkrun", name, "-n", RUN_NAMESPACE, "--type=merge", "-p", patch)


def test_a_suspended_run_saves_gives_everything_back_and_goes_on_as_if_nothing_had_been(
    environment: Environment,
) -> None:
    # No checkpoint is due while it trains: what is saved is saved because it is suspended.
    lazy = {"uri": "s3://skywork-demo/runs/paused", "every": "1h"}
    runs.start(environment, runs.manifest("whole", steps=STEPS))
    runs.start(environment, runs.manifest("paused", steps=STEPS, checkpoints=lazy))
    runs.at_step(environment, "paused", 10)
    _set(environment, "paused", '{"spec":{"suspend":true}}')
    until(lambda: runs.get(environment, "paused").get("state") == "Suspended")
    assert runs.pods(environment, "paused") == []
    assert environment.kube.items("jobs", "-n", RUN_NAMESPACE, "-l", "skywork.dev/run=paused") == []
    _set(environment, "paused", '{"spec":{"suspend":false}}')
    runs.finished(environment, "paused")
    runs.finished(environment, "whole")
    assert reasons(environment, "paused") == {}
    assert_nothing_lost(environment, "paused")
    assert runs.audit(environment, "paused")["losses"] == runs.audit(environment, "whole")["losses"]
    for name in ("paused", "whole"):
        runs.remove(environment, name)


def test_kubectl_scale_shrinks_and_grows_a_run_that_trains(environment: Environment) -> None:
    run = runs.manifest("scaled", steps=2 * STEPS)
    run["spec"]["trainer"]["nodes"] = {"min": 1, "max": 3, "shrinkAfter": "0s", "growAfter": "1s"}
    runs.start(environment, run)
    runs.at_step(environment, "scaled", 10)
    scale = ["scale", "skyworkrun/scaled", "-n", RUN_NAMESPACE]
    environment.kube.run(*scale, "--replicas=1")
    until(lambda: runs.get(environment, "scaled")["nodes"]["training"] == 1)
    until(lambda: len(runs.pods(environment, "scaled")) == 1)
    environment.kube.run(*scale, "--replicas=2")
    until(lambda: runs.get(environment, "scaled")["nodes"]["training"] == 2)
    runs.finished(environment, "scaled")
    assert runs.get(environment, "scaled")["restarts"].get("withoutProgress", 0) == 0
    assert_nothing_lost(environment, "scaled", 2 * STEPS)
    runs.remove(environment, "scaled")


def test_a_run_deleted_in_any_state_leaves_nothing_but_its_checkpoints(environment: Environment) -> None:
    for state in ("Starting", "Training", "Suspending"):
        runs.start(environment, runs.manifest("short-lived", steps=5000))
        if state != "Starting":
            runs.at_step(environment, "short-lived", 5)
        if state == "Suspending":
            _set(environment, "short-lived", '{"spec":{"suspend":true}}')
        began = time.monotonic()
        runs.remove(environment, "short-lived")
        until(
            lambda: (
                not environment.kube.items(
                    "jobs,pods,configmaps", "-n", RUN_NAMESPACE, "-l", "skywork.dev/run=short-lived"
                )
            )
        )
        print(f"deleted while {state}: {time.monotonic() - began:.1f} s")
    assert runs.audit(environment, "short-lived")["steps"] >= 5
