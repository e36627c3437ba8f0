"""A cluster in which nearly everything belongs to somebody else."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kubernetes import client

from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.proxy import Fault, Proxy, Seen, proxy
from tests.control_plane.running import Operator
from tests.control_plane.simulated import remove, run_manifest, trains
from tests.waiting import until

FOREIGN_PODS = 5000
CREATORS = 8
pytestmark = pytest.mark.usefixtures("untainted")


@pytest.fixture
def crowd(kube: Kube, namespace: str, simulation: Simulation) -> Iterator[Callable[[], None]]:
    """Fills a namespace of its own with pods that no scheduler looks at."""
    other = f"{namespace}-crowd"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    until(lambda: kube.items("serviceaccounts", "-n", other), 30)
    api = client.CoreV1Api(simulation.api.api_client)

    def create(number: int) -> None:
        container = {"name": "main", "image": "x", "env": [{"name": f"V{n}", "value": "x" * 40} for n in range(20)]}
        spec = {"schedulerName": "nobody", "containers": [container]}
        metadata = {"name": f"foreign-{number}", "labels": {"app": "web"}}
        api.create_namespaced_pod(other, {"metadata": metadata, "spec": spec})

    def fill() -> None:
        with ThreadPoolExecutor(CREATORS) as creators:
            list(creators.map(create, range(FOREIGN_PODS)))

    yield fill
    api.delete_collection_namespaced_pod(other, grace_period_seconds=0)
    kube.run("delete", "namespace", other, "--wait=false")


def test_five_thousand_foreign_pods_cost_an_operator_neither_time_nor_memory(
    kube: Kube, account: Path, namespace: str, crowd: Callable[[], None], tmp_path: Path
) -> None:
    kube.apply(run_manifest(namespace))
    asked: list[Seen] = []

    def remembered(seen: Seen) -> Fault:
        asked.append(seen)
        return None

    with proxy(account, tmp_path) as between:
        between.fault = remembered
        alone_seconds, alone_mib = _started(kube, namespace, between, tmp_path)
        crowd()
        seconds, mib = _started(kube, namespace, between, tmp_path)
    print(f"alone {alone_seconds:.1f} s, {alone_mib:.0f} MiB; among {FOREIGN_PODS} pods {seconds:.1f} s, {mib:.0f} MiB")
    # Imports are most of a start, and take what the machine gives; 5,000 pods read once would take more than these.
    assert seconds < 2 * alone_seconds + 5
    assert mib < alone_mib + 10
    lists = [seen for seen in asked if seen.method == "GET" and seen.path.endswith(("/pods", "/jobs"))]
    assert {seen.watching for seen in lists} == {True, False}
    assert [seen for seen in lists if "labelSelector=" not in seen.query] == []
    remove(kube, namespace)


def _started(kube: Kube, namespace: str, between: Proxy, folder: Path) -> tuple[float, float]:
    """Seconds until a fresh operator has looked at the run, and what it holds when that trains."""
    began = time.monotonic()
    operator = Operator(between.kubeconfig, folder / "operator.log")
    try:
        label = f'namespace="{namespace}",run="demo"'
        until(lambda: label in operator.page(operator.metrics, "/metrics"), 120, 0.1)
        seconds = time.monotonic() - began
        trains(kube, namespace)
        return seconds, operator.resident_mib()
    finally:
        operator.kill()
