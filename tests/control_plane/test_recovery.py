"""The operator on a real API server whose nodes and agents are simulated: what no real machine does on demand."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.demo.kube import Kube
from dev.simulation import ENDING_SECONDS, Simulation
from tests.control_plane.running import Operator, status
from tests.control_plane.simulated import member, passes, reason, remove, run_manifest, trains
from tests.control_plane.test_crd import changed, manifest
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("untainted")


def test_a_pod_on_a_dead_node_is_replaced_elsewhere_without_anybody_s_help(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(run_manifest(namespace, failurePolicy={"nodeLostAfter": "1s"}))
    before = trains(kube, namespace)
    victim = member(simulation, namespace, 1)
    try:
        simulation.dead.add(victim.node)
        simulation.set_ready(victim.node, "Unknown")
        after = trains(kube, namespace, after=before["generation"])
        assert [(r["reason"], r["count"]) for r in after["restarts"]["byReason"]] == [("NodeLost", 1)]
        bodies = kube.items("pods", "-n", namespace)
        assert victim.node not in {body["spec"].get("nodeName") for body in bodies}
        assert victim.uid not in {body["metadata"]["uid"] for body in bodies}
    finally:
        simulation.dead.clear()
        simulation.set_ready(victim.node, "True")
    remove(kube, namespace)


def test_a_word_that_a_kubelet_passes_over_is_said_again_and_heard(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    deaf = member(simulation, namespace, 1)
    deaf.deaf = True
    simulation.fail(member(simulation, namespace, 2), "Killed", "worker rank 2 was killed by SIGKILL")
    trains(kube, namespace, after=before["generation"])
    said = until(lambda: deaf.membership if deaf.membership and deaf.membership.repeated else None, 30)
    assert (said.generation, said.repeated) == (before["generation"] + 1, 1)
    told = [e["message"] for e in kube.items("events", "-n", namespace) if e["reason"] == "ToldAgain"]
    assert told == [f"pod {deaf.name} has not heard of generation {said.generation}: told again"]
    remove(kube, namespace)


def test_a_dead_kubelet_under_agents_that_train_on_stops_nothing(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    operator = start()
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    node = member(simulation, namespace, 1).node
    try:
        simulation.set_ready(node, "Unknown")
        # The event has come through when the operator has looked at the run twice more.
        seen = passes(operator)
        until(lambda: passes(operator) >= seen + 2, 60)
        assert status(kube, namespace)["generation"] == before["generation"]
        assert len(simulation.of(namespace)) == 3
    finally:
        simulation.set_ready(node, "True")
    remove(kube, namespace)


def test_ranks_are_laid_out_by_the_zones_of_their_nodes(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(manifest(namespace, changed("trainer.nodes", {"min": 4, "max": 4})))
    trains(kube, namespace, nodes=4)
    order = [member(simulation, namespace, rank).node[-1] for rank in range(4)]
    assert ({*order[:2]}, {*order[2:]}) == ({"a", "c"}, {"b", "d"})
    remove(kube, namespace)


def test_a_node_with_a_hardware_fault_is_left_and_avoided(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    victim = member(simulation, namespace, 1)
    simulation.fail(victim, "AppError", "RuntimeError: CUDA error: uncorrectable ECC error encountered")
    after = trains(kube, namespace, after=before["generation"])
    assert [(s["node"], s["avoided"]) for s in after["nodeStrikes"]] == [(victim.node, True)]
    assert [r["reason"] for r in after["restarts"]["byReason"]] == ["HardwareFault"]
    until(lambda: len(simulation.of(namespace)) == 3 and victim.uid not in simulation.pods, 60)
    (new,) = [b for b in kube.items("pods", "-n", namespace) if _avoids(b)]
    assert new["spec"]["nodeName"] != victim.node
    assert _avoids(new) == [victim.node]
    remove(kube, namespace)


def _avoids(body: dict[str, Any]) -> list[str]:
    required = body["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return [value for term in terms for field in term.get("matchFields", []) for value in field["values"]]


def test_deleting_pods_again_and_again_never_delays_their_replacement(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(run_manifest(namespace, failurePolicy={"restartsWithoutProgress": 0}))
    before = trains(kube, namespace)
    # A worker that saves takes its time: even an operator on a busy machine hears of the deletion before the end.
    simulation.ending_seconds = 5.0
    try:
        for _ in range(4):
            victim = member(simulation, namespace, 1)
            kube.run("delete", "pod", "-n", namespace, victim.name, "--wait=false")
            # A Job that counts the ends waits 10, 20, 40, 80 s: the fourth would not come within this time.
            until(lambda gone=victim.uid: gone not in simulation.pods and len(simulation.of(namespace)) == 3, 70)  # type: ignore[misc]
            before = trains(kube, namespace, after=before["generation"])
    finally:
        simulation.ending_seconds = ENDING_SECONDS
    assert before["restarts"]["withoutProgress"] == 0
    assert kube.get("job", "-n", namespace, "demo-general")["status"].get("failed", 0) == 0
    remove(kube, namespace)


def test_a_run_that_is_suspended_and_resumed_gets_new_pods_and_a_new_generation(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    kube.run("patch", "skyworkrun", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(lambda: status(kube, namespace)["state"] == "Suspended", 60)
    assert simulation.of(namespace) == [] and kube.items("jobs", "-n", namespace) == []
    kube.run("patch", "skyworkrun", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    after = trains(kube, namespace, after=before["generation"])
    assert after["restarts"]["total"] == 0
    remove(kube, namespace)


def test_kueue_may_hold_and_let_go_of_a_queued_run_and_the_operator_never_touches_its_suspension(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    assert simulation
    start()
    kube.apply(run_manifest(namespace, scheduling={"queueName": "team-a"}))
    until(lambda: reason(kube, namespace) == "WaitingForQuota", 60)
    job = ["job", "demo-general", "-n", namespace]
    assert kube.get(*job)["spec"]["suspend"] is True
    # What Kueue does: it admits, and later takes the quota back.
    kube.run("patch", *job, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    before = trains(kube, namespace)
    kube.run("patch", *job, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(lambda: reason(kube, namespace) == "WaitingForQuota", 60)
    until(lambda: simulation.of(namespace) == [], 60)
    assert kube.get(*job)["spec"]["suspend"] is True
    kube.run("patch", *job, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    after = trains(kube, namespace, after=before["generation"])
    assert after["restarts"].get("withoutProgress", 0) == 0
    remove(kube, namespace)


def test_a_run_is_scaled_through_the_scale_subresource(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    assert simulation
    start()
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    kube.run("scale", "skyworkrun/demo", "-n", namespace, "--replicas=2")
    after = trains(kube, namespace, nodes=2, after=before["generation"])
    assert after["restarts"].get("withoutProgress", 0) == 0
    until(lambda: len(simulation.of(namespace)) == 2, 60)
    with pytest.raises(RuntimeError, match=r"trainer.nodes.min must not be greater than trainer.nodes.max"):
        kube.run("scale", "skyworkrun/demo", "-n", namespace, "--replicas=1")
    remove(kube, namespace)


def test_a_finished_time_to_live_deletes_the_run_and_a_deadline_ends_it(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    assert simulation
    start()
    kube.apply(run_manifest(namespace, activeDeadline="1h", ttlAfterFinished="4s"))
    trains(kube, namespace)
    # Only now: how long it takes until it trains is the machine's to say.
    kube.run("patch", "skyworkrun", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"activeDeadline":"1s"}}')
    until(lambda: reason(kube, namespace, "Failed") == "DeadlineExceeded", 60)
    until(lambda: simulation.of(namespace) == [], 60)
    until(lambda: not kube.items("skyworkruns", "-n", namespace), 60)
    until(lambda: not kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run=demo"), 60)


def _quota(namespace: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": namespace},
            "spec": {"hard": {"pods": "0"}}}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "label", "quota", "expected"),
    [
        pytest.param({}, {}, True, "QuotaExceeded", id="the namespace's quota is used up"),
        pytest.param(
            {"spec": {"hostNetwork": True}},
            {"pod-security.kubernetes.io/enforce": "restricted"},
            False,
            "PodSecurity",
            id="the namespace's Pod Security refuses the pods",
        ),
        pytest.param(
            {"spec": {"serviceAccountName": "nobody"}}, {}, False, "ServiceAccountMissing", id="no such ServiceAccount"
        ),
        pytest.param(
            {"spec": {"priorityClassName": "urgent"}}, {}, False, "PriorityClassMissing", id="no such PriorityClass"
        ),
        pytest.param(
            {"spec": {"nodeSelector": {"gpu": "h100"}}}, {}, False, "Unschedulable", id="no node fits"
        ),
    ],
)  # fmt: skip
def test_why_a_run_does_not_run_is_in_its_condition(
    kube: Kube,
    namespace: str,
    start: Callable[[], Operator],
    simulation: Simulation,
    template: dict[str, Any],
    label: dict[str, str],
    quota: bool,
    expected: str,
) -> None:
    assert simulation
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": label}})
    if quota:
        kube.apply(_quota(namespace))
        until(lambda: kube.get("resourcequota", "q", "-n", namespace).get("status", {}).get("hard"), 30)
    start()
    kube.apply(manifest(namespace, changed("trainer.template", template)))
    until(lambda: reason(kube, namespace) == expected, 60)
    message = next(c["message"] for c in status(kube, namespace)["conditions"] if c["type"] == "Running")
    assert message.startswith("stage general: 0 of 3 nodes are ready; "), message
    remove(kube, namespace)


def test_agents_that_a_network_policy_hides_from_the_operator_are_told_of_until_they_can_be_reached(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    simulation.cut_off.add(namespace)
    start()
    kube.apply(run_manifest(namespace))
    until(lambda: reason(kube, namespace) == "AgentUnreachable", 120)
    message = next(c["message"] for c in status(kube, namespace)["conditions"] if c["type"] == "Running")
    assert "0 of 3 nodes are ready" in message and "NetworkPolicies" in message, message
    simulation.cut_off.clear()
    assert trains(kube, namespace)["restarts"].get("total", 0) == 0
    remove(kube, namespace)


def test_two_operators_with_elections_do_everything_once_and_the_second_takes_over(
    kube: Kube, namespace: str, start_elected: Callable[[], Operator], simulation: Simulation
) -> None:
    first = start_elected()
    until(lambda: "leads now" in first.log.read_text(), 60)
    second = start_elected()
    until(lambda: second.page(second.health, "/healthz"), 60)
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    assert passes(second) == 0
    victim = member(simulation, namespace, 1)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    simulation.fail(victim, "Killed", "worker rank 1 was killed by SIGKILL")
    after = trains(kube, namespace, after=before["generation"])
    assert after["restarts"]["total"] == 1
    assert passes(second) > 0
    second.process.terminate()
    assert second.process.wait(30) == 0
    lease = kube.get("lease", "skywork-operator-leader", "-n", "skywork-system")
    assert lease["spec"].get("holderIdentity", "") == "", "an operator that ends lets go of the lead"
    remove(kube, namespace)


@pytest.fixture
def start_elected(account: Path, tmp_path: Path) -> Iterator[Callable[[], Operator]]:
    started: list[Operator] = []

    def one() -> Operator:
        started.append(Operator(account, tmp_path / "operator.log", "--leader-election"))
        return started[-1]

    yield one
    for operator in started:
        operator.process.send_signal(signal.SIGCONT)
        operator.kill()
    print((tmp_path / "operator.log").read_text()[-3000:])
