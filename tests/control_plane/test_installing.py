"""Where the operator may look, and what is left when it is taken away."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dev.cluster.control_plane import ControlPlane
from dev.demo.install import ROOT
from dev.demo.kube import CommandError, Kube
from dev.simulation import Simulation
from tests.control_plane.running import Operator, chart_account
from tests.control_plane.simulated import member, passes, remove, run_manifest, trains
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("untainted")


def test_an_operator_of_one_namespace_does_its_work_without_any_right_beyond_it(
    kube: Kube, plane: ControlPlane, namespace: str, simulation: Simulation, tmp_path: Path
) -> None:
    system = f"{namespace}-system"
    account = chart_account(kube, plane, system, tmp_path, f"watchNamespaces={{{namespace}}}")
    who = f"system:serviceaccount:{system}:skywork"
    for forbidden in ("list pods -n default", "get nodes", "list skyworkruns -A", "watch leases -n default"):
        with pytest.raises(CommandError):
            kube.run("auth", "can-i", *forbidden.split(), "--as", who)
    log = tmp_path / "operator.log"
    operator = Operator(account, log, f"--namespace={namespace}", system=system)
    try:
        kube.apply(run_manifest(namespace))
        before = trains(kube, namespace)
        simulation.fail(member(simulation, namespace, 1), "Killed", "worker rank 1 was killed by SIGKILL")
        before = trains(kube, namespace, after=before["generation"])
        victim = member(simulation, namespace, 2)
        kube.run("delete", "pod", "-n", namespace, victim.name, "--wait=false")
        trains(kube, namespace, after=before["generation"])
        assert operator.page(operator.health, "/healthz")
        assert "403" not in log.read_text() and "forbidden" not in log.read_text().lower()
        remove(kube, namespace)
    finally:
        operator.kill()
        print(log.read_text()[-3000:])


@pytest.mark.parametrize("alive", [True, False], ids=["the operator runs", "the operator is gone already"])
def test_removing_the_definition_under_a_run_that_trains_hangs_nowhere_and_leaves_nothing(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation, alive: bool
) -> None:
    operator = start()
    kube.apply(run_manifest(namespace))
    trains(kube, namespace)
    if not alive:
        operator.kill()
    try:
        kube.run("delete", "crd", "skyworkruns.skywork.dev", timeout_seconds=60)
        until(lambda: not kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run=demo"), 120)
        assert simulation.of(namespace) == []
        # An operator whose kind is gone ends, or at least its probe fails: its kubelet starts it again either way.
        until(lambda: not operator.page(operator.health, "/healthz"), 120)
    finally:
        kube.run("apply", "-f", str(ROOT / "manifests/crd"))
        until(lambda: "skyworkruns" in kube.run("api-resources", "--api-group=skywork.dev", "-o", "name"), 30)
    operator.kill()
    operator = start()
    until(lambda: _applied(kube, namespace), 60)
    trains(kube, namespace)
    assert passes(operator) > 0
    remove(kube, namespace)


def _applied(kube: Kube, namespace: str) -> bool:
    """Whether the API server takes a run again: a definition that has just come back may not be served yet."""
    try:
        kube.apply(run_manifest(namespace))
    except CommandError:
        return False
    return True
