"""Why a run does not run, where only a real kubelet or network can tell; and that it does once that is mended."""

from collections.abc import Callable
from typing import Any

import pytest

from dev.demo.environment import Environment
from dev.demo.install import RUN_NAMESPACE
from tests.cluster import runs
from tests.waiting import until


def running(environment: Environment, name: str) -> tuple[str, str]:
    """Reason and message of the condition Running."""
    said = runs.get(environment, name).get("conditions", [])
    return next(((c["reason"], c["message"]) for c in said if c["type"] == "Running"), ("", ""))


def secret(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": RUN_NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"UNUSED": "x"}}


def config_map(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": RUN_NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"unused": "x"}}


@pytest.mark.parametrize(
    ("patch", "reason", "missing"),
    [
        pytest.param(
            lambda name: {"containers": [{"name": "trainer", "envFrom": [
                {"secretRef": {"name": "object-storage"}}, {"secretRef": {"name": name}}]}]},
            "SecretMissing", secret, id="a Secret of the environment",
        ),
        pytest.param(
            lambda name: {
                "volumes": [{"name": "more", "configMap": {"name": name}}],
                # A kubelet makes nothing of a volume that no container mounts.
                "containers": [{"name": "trainer", "envFrom": [{"secretRef": {"name": "object-storage"}}],
                                "volumeMounts": [{"name": "more", "mountPath": "/more"}]}],
            },
            "ConfigMapMissing", config_map, id="a ConfigMap of a volume",
        ),
    ],
)  # fmt: skip
def test_what_a_pod_lacks_is_named_and_the_run_trains_once_it_is_there(
    environment: Environment,
    patch: Callable[[str], dict[str, Any]],
    reason: str,
    missing: Callable[[str], dict[str, Any]],
) -> None:
    name = f"lacking-{reason.lower()}"
    run = runs.manifest(name, steps=5, nodes=1)
    environment.kube.run("delete", missing(name)["kind"].lower(), name, "-n", RUN_NAMESPACE, "--ignore-not-found")
    run["spec"]["trainer"]["template"]["spec"] |= patch(name)
    runs.start(environment, run)
    until(lambda: running(environment, name)[0] == reason)
    message = running(environment, name)[1]
    assert message.startswith("stage general: 0 of 1 nodes are ready; ") and name in message
    environment.kube.apply(missing(name))
    runs.finished(environment, name)
    assert runs.get(environment, name)["restarts"].get("total", 0) == 0
    environment.kube.run("delete", missing(name)["kind"].lower(), name, "-n", RUN_NAMESPACE)
    runs.remove(environment, name)


def test_an_image_that_cannot_be_pulled_is_told_of_in_one_word_that_stays(environment: Environment) -> None:
    run = runs.manifest("imageless", steps=5, nodes=1)
    # Nobody listens there: pulling fails at once, again and again.
    run["spec"]["trainer"]["image"] = "127.0.0.1:9/nobody/trainer:1"
    run["spec"]["trainer"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always"
    runs.start(environment, run)
    until(lambda: running(environment, "imageless")[0] == "ImagePullBackOff")
    states = set()

    def backed_off() -> bool:
        for pod in runs.pods(environment, "imageless"):
            states.update(c["state"].get("waiting", {}).get("reason") for c in pod["status"]["containerStatuses"])
        assert running(environment, "imageless")[0] == "ImagePullBackOff"
        return {"ErrImagePull", "ImagePullBackOff"} <= states

    until(backed_off)
    assert "127.0.0.1:9/nobody/trainer:1" in running(environment, "imageless")[1]
    listed = environment.kube.items("events", "-n", RUN_NAMESPACE, "--field-selector", "reason=ImagePullBackOff")
    assert len([e for e in listed if e["involvedObject"]["name"] == "imageless"]) == 1
    runs.remove(environment, "imageless")


def test_storage_that_nobody_answers_at_is_waited_for_and_costs_nothing_of_the_budget(environment: Environment) -> None:
    run = runs.manifest("stranded", steps=5, nodes=1, failurePolicy={"restartsWithoutProgress": 0})
    away = [{"name": "AWS_ENDPOINT_URL", "value": "http://127.0.0.1:9"}, {"name": "AWS_MAX_ATTEMPTS", "value": "2"}]
    run["spec"]["trainer"]["template"]["spec"]["containers"][0]["env"] = away
    runs.start(environment, run)
    counts = until(lambda: runs.get(environment, "stranded").get("restarts", {}).get("total", 0) >= 3)
    assert counts
    status = runs.get(environment, "stranded")
    assert status["state"] != "Failed"
    assert {entry["reason"] for entry in status["restarts"]["byReason"]} == {"StorageUnreachable"}
    assert status["restarts"].get("withoutProgress", 0) == 0
    until(lambda: running(environment, "stranded")[0] == "StorageUnreachable")
    assert "http://127.0.0.1:9" in running(environment, "stranded")[1]
    runs.remove(environment, "stranded")
