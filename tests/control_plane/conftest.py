"""A private control plane on loopback: real etcd, API server, controller manager and scheduler, no nodes."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.build import ensure_built
from dev.cluster.control_plane import ControlPlane, control_plane
from dev.demo.install import ROOT
from dev.demo.kube import Kube
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
    tools.run("wait", "--for=condition=Established", "crd/skyworkruns.skywork.dev", "--timeout=30s")
    # Discovery lags behind for a moment.
    until(lambda: "skyworkruns" in tools.run("api-resources", "--api-group=skywork.dev", "-o", "name"), 30)
    return tools


@pytest.fixture
def namespace(kube: Kube) -> str:
    """A namespace of the test's own."""
    name = f"test-{next(_numbers)}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
