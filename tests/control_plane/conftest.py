"""A private control plane on loopback: real etcd, API server, controller manager and scheduler, no nodes."""

import itertools
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dev.cluster.build import ensure_built
from dev.cluster.control_plane import ControlPlane, control_plane
from dev.demo.install import ROOT
from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.proxy import Proxy, proxy
from tests.control_plane.running import SYSTEM, Operator, chart_account
from tests.waiting import until

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """The control plane of this session."""
    # pytest's own temporary folders have long names, and etcd's sockets must not.
    binaries = ensure_built(print)
    with tempfile.TemporaryDirectory(prefix="skywork-") as folder, control_plane(Path(folder), binaries) as running:
        yield running


@pytest.fixture(scope="session")
def kube(plane: ControlPlane) -> Kube:
    """kubectl as administrator, with the CRD installed."""
    tools = Kube(
        kubectl=str(plane.binaries / "kubectl"), helm=str(plane.binaries / "helm"), kubeconfig=plane.kubeconfig
    )
    tools.run("apply", "-f", str(ROOT / "manifests/crd"))
    # Not `kubectl wait`: it refuses an object whose status has no conditions yet. And discovery lags behind a little.
    until(lambda: "skyworkruns" in tools.run("api-resources", "--api-group=skywork.dev", "-o", "name"), 30)
    return tools


@pytest.fixture
def namespace(kube: Kube) -> str:
    """A namespace of the test's own."""
    name = f"test-{next(_numbers)}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture(scope="session")
def account(kube: Kube, plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with nothing but a token of the ServiceAccount that the chart makes."""
    return chart_account(kube, plane, SYSTEM, tmp_path_factory.mktemp("account"), "leaderElection=true")


@pytest.fixture
def start(account: Path, tmp_path: Path) -> Iterator[Callable[[], Operator]]:
    started: list[Operator] = []

    def one() -> Operator:
        started.append(Operator(account, tmp_path / "operator.log"))
        return started[-1]

    yield one
    for operator in started:
        operator.kill()
    print((tmp_path / "operator.log").read_text()[-3000:])


@pytest.fixture(scope="module")
def simulation(plane: ControlPlane, kube: Kube) -> Iterator[Simulation]:
    """Four nodes that run whatever is scheduled onto them."""
    assert kube
    with Simulation(plane.kubeconfig) as running:
        for name in "abcd":
            running.add_node(f"sim-{name}", {"topology.kubernetes.io/zone": "z1" if name in "ac" else "z2"})
        yield running
        for name in "abcd":
            running.api.delete_node(f"sim-{name}")


@pytest.fixture
def untainted(simulation: Simulation) -> None:
    """A node that a test before had die is a node like any other again."""
    until(simulation.untainted, 60)


@pytest.fixture
def between(account: Path, tmp_path: Path) -> Iterator[Proxy]:
    """What the operators of a test speak with."""
    with proxy(account, tmp_path) as made:
        yield made


@pytest.fixture
def started(between: Proxy, tmp_path: Path) -> Iterator[list[Operator]]:
    """The operators of a test, which end with it."""
    operators: list[Operator] = []
    yield operators
    for operator in operators:
        with suppress(ProcessLookupError):
            operator.process.send_signal(signal.SIGCONT)
        operator.kill()
    if (tmp_path / "operator.log").exists():
        print((tmp_path / "operator.log").read_text()[-3000:])
