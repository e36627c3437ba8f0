"""Gangs: PodGroups of others on a real API server, and Kubernetes' own with its real scheduler."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.cluster.build import ensure_built
from dev.cluster.control_plane import ControlPlane, control_plane
from dev.demo.install import ROOT
from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.running import SYSTEM, Operator, chart_account, status
from tests.control_plane.simulated import trains
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
    until(lambda: _reason(kube, namespace) == "GangSchedulerMissing", 30)
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


# -- Kubernetes' own -------------------------------------------------------------------------------------------------


@pytest.fixture
def grouping_plane() -> Iterator[ControlPlane]:
    """A control plane with Kubernetes' own gangs, which 1.36 has behind gates."""
    gates, apis = ("GenericWorkload", "GangScheduling"), ("scheduling.k8s.io/v1alpha2",)
    with (
        tempfile.TemporaryDirectory(prefix="skywork-") as folder,
        control_plane(Path(folder), ensure_built(print), gates=gates, apis=apis) as running,
    ):
        yield running


def test_pods_of_a_run_are_placed_together_or_not_at_all_by_kubernetes_own_scheduler(
    grouping_plane: ControlPlane, tmp_path: Path
) -> None:
    binaries = grouping_plane.binaries
    kube = Kube(kubectl=str(binaries / "kubectl"), helm=str(binaries / "helm"), kubeconfig=grouping_plane.kubeconfig)
    kube.run("apply", "-f", str(ROOT / "manifests/crd"))
    until(lambda: "skyworkruns" in kube.run("api-resources", "--api-group=skywork.dev", "-o", "name"), 30)
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gang"}})
    operator = Operator(chart_account(kube, grouping_plane, SYSTEM, tmp_path), tmp_path / "operator.log")
    with Simulation(grouping_plane.kubeconfig) as simulation:
        try:
            # One pod fits on each, so that of three pods two could hold their places and wait.
            for name in ("one", "two"):
                simulation.add_node(name, pods=1)
            kube.apply(manifest("gang", changed("trainer.nodes", {"min": 3, "max": 3})))
            until(lambda: _reason(kube, "gang") == "Unschedulable", 60)
            assert [pod["spec"].get("nodeName") for pod in kube.items("pods", "-n", "gang")] == [None] * 3
            (group,) = kube.items("podgroups.scheduling.k8s.io", "-n", "gang")
            assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 3}}
            simulation.add_node("three", pods=1)
            trained = trains(kube, "gang")
            # One that is replaced is no gang of its own, and needs no others to come with it.
            kube.run("delete", "pod", "-n", "gang", kube.items("pods", "-n", "gang")[1]["metadata"]["name"])
            trains(kube, "gang", after=trained["generation"])
            kube.run("delete", "skyworkrun", "demo", "-n", "gang", "--cascade=foreground")
            until(lambda: not kube.items("podgroups.scheduling.k8s.io", "-n", "gang"), 60)
        finally:
            operator.kill()
            print((tmp_path / "operator.log").read_text()[-3000:])


def _reason(kube: Kube, namespace: str) -> str:
    said = status(kube, namespace).get("conditions", [])
    return next((c["reason"] for c in said if c["type"] == "Running"), "")
