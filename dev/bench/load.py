"""A control plane with kwok's nodes, and what an operator does to it: requests, processor time, memory."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from dev.bench.figures import say
from dev.cluster import processes
from dev.cluster.build import KWOK, build, ensure_built
from dev.cluster.control_plane import ControlPlane, control_plane
from dev.cluster.flows import counted, flow_schemas
from dev.cluster.paths import TOOLS

NAMESPACE = "default"
PODS_PER_NODE = 110
_USER = "bench-operator"
_CREATORS = 4
_SETTLE_SECONDS = 5.0
_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one load."""

    seconds: float
    """From the first create until the last run said that all its pods train."""
    median_seconds: float
    """The same until half of them did."""
    requests: int
    writes: int
    cpu_seconds: float
    """Of the operator, until the last run said so."""
    peak_mib: float
    quiet_writes: int
    """While nothing changed, for `quiet_seconds`."""
    quiet_requests: int
    pages: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Workbench:
    """A running control plane, and the operator that is measured."""

    plane: ControlPlane
    operator: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.api = config.new_client_from_config(str(self.plane.kubeconfig))
        self.kubeconfig = self.plane.pki.kubeconfig(self.plane.folder / "operator.kubeconfig", user=_USER)
        """Of the operator: its requests are counted by its user."""

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as administrator."""
        command = [str(self.plane.binaries / "kubectl"), f"--kubeconfig={self.plane.kubeconfig}", *arguments]
        ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments[:3])}: {ended.stderr[-500:]}")
        return ended.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create objects."""
        self.kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def requests(self) -> tuple[int, int]:
        """How many requests the operator's user has made so far, and how many of them write."""
        made = counted(_USER, self.kubectl("get", "--raw", "/metrics"))
        return made.reads + made.writes, made.writes

    def load(
        self,
        path: tuple[str, str, str],
        manifests: list[dict[str, Any]],
        trains: Callable[[dict[str, Any]], bool],
        *,
        limit_seconds: float,
        quiet_seconds: float,
        pages: Callable[[], Mapping[str, str]] = dict,
    ) -> Outcome:
        """Create runs of a kind (group, version, plural) and wait until `trains` holds for the status of each."""
        assert self.operator is not None
        pid, done = self.operator.pid, _Watched(self.api, path, trains)
        peak = _Peak(pid)
        (requests, writes), cpu, begun = self.requests(), _cpu_seconds(pid), time.monotonic()
        custom = client.CustomObjectsApi(self.api)
        with ThreadPoolExecutor(_CREATORS) as creators:
            list(creators.map(lambda body: custom.create_namespaced_custom_object(*_in(path), body), manifests))
        while len(done.times) < len(manifests):
            if time.monotonic() - begun > limit_seconds:
                raise RuntimeError(f"{len(done.times)} of {len(manifests)} train after {limit_seconds:.0f} s")
            if self.operator.poll() is not None:
                raise RuntimeError(f"the operator ended{processes.tail(self.plane.folder / 'operator.log')}")
            time.sleep(0.05)
        spent, times = _cpu_seconds(pid) - cpu, sorted(done.times.values())
        time.sleep(_SETTLE_SECONDS)  # events and last words that an operator still holds back are its requests, too
        after, quiet = self.requests(), time.monotonic()
        while time.monotonic() - quiet < quiet_seconds:
            time.sleep(0.5)
        later = self.requests()
        outcome = Outcome(
            seconds=times[-1] - begun,
            median_seconds=times[len(times) // 2] - begun,
            requests=after[0] - requests,
            writes=after[1] - writes,
            cpu_seconds=spent,
            peak_mib=peak.stop(),
            quiet_writes=later[1] - after[1],
            quiet_requests=later[0] - after[0],
            pages=pages(),
        )
        done.stop()
        return outcome

    def start_operator(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Start the operator to measure."""
        self.operator = processes.start("operator", command, self.plane.folder, environment)


@contextmanager
def workbench(folder: Path, *, pods: int) -> Iterator[Workbench]:
    """A control plane with ready nodes for so many pods; gone with the context."""
    binaries, kwok = ensure_built(say), build(KWOK, say)
    with control_plane(folder, binaries) as plane:
        bench = Workbench(plane)
        bench.apply(*_counting())
        stages = [f"--config={_module('sigs.k8s.io/kwok') / 'kustomize/stage' / stage}" for stage in _STAGES]
        command = [str(kwok / "kwok"), f"--kubeconfig={plane.kubeconfig}", "--manage-all-nodes", "--cidr=127.64.0.1/10"]
        # Renewed every quarter of that: the controller manager here gives a node up after 10 s.
        processes.start("kwok", [*command, "--node-lease-duration-seconds=20", *stages], folder)
        count = pods // (PODS_PER_NODE - 10) + 2
        room = {"cpu": "10000", "memory": "10000Gi", "pods": str(PODS_PER_NODE)}
        bench.apply(*[_node(number, room) for number in range(count)])
        try:
            processes.wait(
                "the fake nodes", lambda: _ready_nodes(bench) == count, 120, folder / "kwok.log"
            )  # fmt: skip
            yield bench
        finally:
            if bench.operator is not None:
                bench.operator.kill()
                bench.operator.wait()
            processes.kill(list(processes.pids(folder).values()))


def _module(name: str) -> Path:
    command = ["go", "list", "-m", "-f", "{{.Dir}}", name]
    ended = subprocess.run(command, cwd=TOOLS / "kwok", capture_output=True, text=True, check=True)
    return Path(ended.stdout.strip())


def _ready_nodes(bench: Workbench) -> int:
    nodes = json.loads(bench.kubectl("get", "nodes", "-o", "json"))["items"]
    ready = [
        any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
        and not node["spec"].get("taints")
        for node in nodes
    ]
    return sum(ready)


def _node(number: int, room: Mapping[str, str]) -> dict[str, Any]:
    name = f"fake-{number:03}"
    labels = {"kubernetes.io/hostname": name, "type": "kwok"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"capacity": dict(room), "allocatable": dict(room)},
    }


def _counting() -> list[dict[str, Any]]:
    """Every right for the operator's user, and flows of its own, by which its requests are counted."""
    bound = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": _USER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": _USER}],
    }
    return [bound, *flow_schemas(_USER, {"kind": "User", "user": {"name": _USER}})]


def _in(path: tuple[str, str, str]) -> tuple[str, str, str, str]:
    group, version, plural = path
    return group, version, NAMESPACE, plural


class _Watched:
    """When each object of a kind first said what is waited for."""

    def __init__(self, api: client.ApiClient, path: tuple[str, str, str], trains: Callable[[dict[str, Any]], bool]):
        self.times: dict[str, float] = {}
        self._api, self._path, self._trains = api, path, trains
        self._watch, self._ended = watch.Watch(), False
        threading.Thread(target=self._follow, name="watch", daemon=True).start()

    def stop(self) -> None:
        self._ended = True
        self._watch.stop()

    def _follow(self) -> None:
        call = client.CustomObjectsApi(self._api).list_namespaced_custom_object
        while not self._ended:
            # A watch ends now and then, and with the control plane.
            with suppress(ApiException, HTTPError):
                for event in self._watch.stream(call, *_in(self._path)):
                    body = event["object"]
                    if self._trains(body.get("status") or {}):
                        self.times.setdefault(body["metadata"]["name"], time.monotonic())


class _Peak:
    """Most memory that a process held."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most, self._ended = pid, 0.0, threading.Event()
        threading.Thread(target=self._look, name="memory", daemon=True).start()

    def stop(self) -> float:
        self._ended.set()
        return self._most

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            self._most = max(self._most, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
