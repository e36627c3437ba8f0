"""The operator is upgraded, taken away and brought back under a run that trains."""

from typing import Any

from dev.demo import install
from dev.demo.environment import Environment
from dev.demo.install import OPERATOR_NAMESPACE, RELEASE, RUN_NAMESPACE
from tests.cluster import runs
from tests.waiting import until

STEPS = 120
OPERATORS = ["pods", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-operator"]


def touched(environment: Environment, name: str) -> dict[str, Any]:
    """What an operator could have changed of a run's pods and Jobs."""
    listed = environment.kube.items("pods,jobs", "-n", RUN_NAMESPACE, "-l", f"skywork.dev/run={name}")
    return {
        item["metadata"]["uid"]: (
            item["metadata"].get("annotations"),
            item["metadata"].get("deletionTimestamp"),
            [c["restartCount"] for c in item["status"].get("containerStatuses", [])],
            item["metadata"]["generation"] if item["kind"] == "Job" else None,
        )
        for item in listed
    }


def test_an_upgrade_of_the_operator_to_other_defaults_touches_no_pod_of_a_run_that_trains(
    environment: Environment,
) -> None:
    kube = environment.kube
    runs.start(environment, runs.manifest("upgraded", steps=2 * STEPS))
    before = runs.at_step(environment, "upgraded", 10)
    members = touched(environment, "upgraded")
    old = {pod["metadata"]["uid"] for pod in kube.items(*OPERATORS)}
    values = environment.overlay.chart_values()
    template = environment.overlay.trainer_template()
    template["metadata"] = {"labels": {"example.org/added-by-the-upgrade": "yes"}}
    trainer = values["trainer"] | {"template": template}
    try:
        # Helm waits until the new one is ready.
        install.install_chart(kube, environment.overlay, {"logLevel": "DEBUG", "trainer": trainer})
        until(lambda: not old & {pod["metadata"]["uid"] for pod in kube.items(*OPERATORS)})
        after = until(lambda: (s := runs.get(environment, "upgraded")).get("step", 0) > before["step"] + 10 and s)
        assert (after["generation"], after["restarts"]["total"]) == (before["generation"], 0)
        assert touched(environment, "upgraded") == members
        runs.remove(environment, "upgraded")
    finally:
        install.install_chart(kube, environment.overlay)


def test_a_run_whose_operator_is_uninstalled_trains_on_and_is_finished_by_the_next_one(
    environment: Environment,
) -> None:
    kube = environment.kube
    runs.start(environment, runs.manifest("deserted", steps=STEPS))
    runs.start(environment, runs.manifest("dropped", steps=5000, nodes=1))
    before = runs.at_step(environment, "deserted", 10)
    runs.at_step(environment, "dropped", 1)
    members = touched(environment, "deserted")
    try:
        kube.run_helm("uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "120s")
        assert (
            kube.items(
                "deployments,serviceaccounts", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/instance=skywork"
            )
            == []
        )
        assert touched(environment, "deserted") == members
        # Nobody is needed for that: what belongs to a run goes with it.
        runs.remove(environment, "dropped")
        label = ["-n", RUN_NAMESPACE, "-l", "skywork.dev/run=dropped"]
        until(lambda: not kube.items("jobs,pods,configmaps", *label))
        until(lambda: _complete(environment, "deserted"), 240)
    finally:
        install.install_chart(kube, environment.overlay)
    after = runs.finished(environment, "deserted")
    assert (after["generation"], after["restarts"]["total"]) == (before["generation"], 0)
    counted = runs.audit(environment, "deserted")
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (STEPS, 0, 0)
    runs.remove(environment, "deserted")


def _complete(environment: Environment, name: str) -> bool:
    (job,) = environment.kube.items("jobs", "-n", RUN_NAMESPACE, "-l", f"skywork.dev/run={name}")
    return any(c["type"] == "Complete" and c["status"] == "True" for c in job["status"].get("conditions", []))
