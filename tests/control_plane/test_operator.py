"""The operator, as a process under its chart's own ServiceAccount, against a real API server."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dev.demo.kube import CommandError, Kube
from tests.control_plane.running import ACCOUNT, CHART, Operator, status
from tests.control_plane.test_crd import changed, manifest
from tests.waiting import until


def test_a_run_gets_its_job_and_says_so_under_the_chart_s_own_rights(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    operator = start()
    kube.apply(manifest(namespace))
    until(lambda: len(kube.items("pods", "-n", namespace)) == 3, 60)
    said = until(lambda: status(kube, namespace) or None, 30)
    assert {c["type"]: c["status"] for c in said["conditions"]}["Accepted"] == "True"
    reasons = until(lambda: {e["reason"] for e in kube.items("events", "-n", namespace)} & {"StageStarted"}, 30)
    assert reasons == {"StageStarted"}
    # The scheduler has no node to give: the run must say so.
    until(lambda: "Unschedulable" in json.dumps(status(kube, namespace)["conditions"]), 30)
    assert "finalizers" not in kube.get("skyworkrun", "-n", namespace, "demo")["metadata"]
    assert until(lambda: operator.page(operator.health, "/healthz"), 30)
    label = f'namespace="{namespace}",run="demo"'
    until(lambda: f"skywork_run_condition{{{label}" in operator.page(operator.metrics, "/metrics"), 30)
    assert "403" not in operator.log.read_text()
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")
    until(lambda: label not in operator.page(operator.metrics, "/metrics"), 30)
    until(lambda: not kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run=demo"), 60)


def test_an_operator_that_is_killed_and_started_again_changes_nothing(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    first = start()
    kube.apply(manifest(namespace))
    until(lambda: "Unschedulable" in json.dumps(status(kube, namespace).get("conditions", [])), 60)

    def versions() -> dict[str, str]:
        items = kube.items("jobs,pods,configmaps,skyworkruns", "-n", namespace)
        return {i["kind"] + i["metadata"]["name"]: i["metadata"]["resourceVersion"] for i in items}

    # The API server's own writes (scheduling attempts) end first.
    settled = [versions()]
    until(lambda: settled.append(versions()) or settled[-1] == settled[-2], 60, 2.0)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = start()
    done = 'skywork_operator_reconcile_total{result="ok"}'
    passes = f'namespace="{namespace}",run="demo"'
    until(lambda: passes in second.page(second.metrics, "/metrics"), 60)

    def count() -> float:
        lines = [line for line in second.page(second.metrics, "/metrics").splitlines() if line.startswith(done)]
        return float(lines[0].split()[-1]) if lines else 0.0

    until(lambda: count() >= 5, 60)
    assert versions() == settled[-1]
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_an_operator_that_is_asked_to_stop_ends_with_0(start: Callable[[], Operator]) -> None:
    operator = start()
    until(lambda: operator.page(operator.health, "/healthz"), 60)
    operator.process.terminate()
    assert operator.process.wait(30) == 0


def test_shares_that_do_not_add_up_become_a_condition_and_make_no_job(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    start()
    kube.apply(manifest(namespace, changed("stages.0.mixture", [{"source": "main", "share": {"from": "0.5"}}])))
    accepted = until(lambda: [c for c in status(kube, namespace).get("conditions", []) if c["type"] == "Accepted"], 60)[
        0
    ]
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "stages[general].mixture" in accepted["message"]
    assert kube.items("jobs", "-n", namespace) == []
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_a_run_is_deleted_with_all_it_made_while_no_operator_runs(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    operator = start()
    kube.apply(manifest(namespace))
    until(lambda: len(kube.items("pods", "-n", namespace)) == 3, 60)
    operator.kill()
    kube.run("delete", "skyworkrun", "-n", namespace, "demo", timeout_seconds=30)
    until(lambda: not kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run=demo"), 60)


@pytest.mark.parametrize(
    "forbidden",
    [
        "get secrets", "create pods", "patch pods --subresource=status", "patch nodes", "delete nodes",
        "update skyworkruns", "delete configmaps", "create deployments.apps", "get pods --subresource=exec",
        "create namespaces",
    ],
)  # fmt: skip
def test_the_operator_may_not_do_what_it_does_not_need(kube: Kube, account: Path, forbidden: str) -> None:
    with pytest.raises(CommandError):
        kube.run("auth", "can-i", *forbidden.split(), "-n", "default", "--as", ACCOUNT)


def test_the_rendered_pod_passes_pod_security_restricted(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    start()
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": label}})
    kube.apply(manifest(namespace))
    until(lambda: len(kube.items("pods", "-n", namespace)) == 3, 60)
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_the_chart_is_lint_free_and_refuses_unknown_values(kube: Kube) -> None:
    assert "0 chart(s) failed" in kube.run_helm("lint", "--strict", str(CHART))
    with pytest.raises(CommandError, match="triner"):
        kube.run_helm("template", "x", str(CHART), "--kube-version", "1.36.3", "--set", "triner.image=x")


def test_watching_named_namespaces_needs_no_cluster_wide_right(kube: Kube) -> None:
    arguments = ["template", "x", str(CHART), "--kube-version", "1.36.3", "--set", "watchNamespaces={a,b}"]
    text = kube.run_helm(*arguments)
    assert "ClusterRole" not in text
    assert text.count("kind: RoleBinding") == 2
    rules = [rule for role in yaml.safe_load_all(text) if role["kind"] == "Role" for rule in role["rules"]]
    assert rules
    assert not any("nodes" in rule["resources"] for rule in rules)
    assert "--namespace=a" in text
