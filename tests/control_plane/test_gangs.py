"""Gang schedulers' PodGroups on a real API server, which knows their kind only once it is installed."""

from collections.abc import Callable, Iterator

import pytest

from dev.demo.kube import Kube
from tests.control_plane.running import Operator, status
from tests.control_plane.test_crd import changed, manifest
from tests.waiting import until

GROUP = "scheduling.volcano.sh"


@pytest.fixture
def installed(kube: Kube) -> Iterator[Callable[[], None]]:
    """Installs Volcano's kind, as far as the API server has to know it."""
    names = {"plural": "podgroups", "singular": "podgroup", "kind": "PodGroup"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"podgroups.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }

    def install() -> None:
        kube.apply(definition)
        until(lambda: "podgroups" in kube.run("api-resources", f"--api-group={GROUP}", "-o", "name"), 30)

    yield install
    kube.run("delete", "crd", f"podgroups.{GROUP}", "--ignore-not-found")


def test_a_run_in_a_gang_waits_for_the_scheduler_to_be_installed_and_then_has_its_pod_group(
    kube: Kube, namespace: str, start: Callable[[], Operator], installed: Callable[[], None]
) -> None:
    start()
    spec = changed("trainer.nodes", {"min": 2, "max": 3}) | {"scheduling": {"gang": "Volcano"}}
    kube.apply(manifest(namespace, spec))

    def reason() -> str:
        said = status(kube, namespace).get("conditions", [])
        return next((c["reason"] for c in said if c["type"] == "Running"), "")

    until(lambda: reason() == "GangSchedulerMissing", 30)
    assert not kube.items("jobs", "-n", namespace)
    installed()
    kube.run("annotate", "skyworkrun", "demo", "-n", namespace, "test/look=again")
    until(lambda: len(kube.items("pods", "-n", namespace)) == 3, 60)
    (group,) = kube.items(f"podgroups.{GROUP}", "-n", namespace)
    assert group["spec"]["minMember"] == 2
    for pod in kube.items("pods", "-n", namespace):
        assert pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == group["metadata"]["name"]
        assert pod["spec"]["schedulerName"] == "volcano"
    kube.run("delete", "skyworkrun", "demo", "-n", namespace)
    until(lambda: not kube.items(f"podgroups.{GROUP}", "-n", namespace), 60)
