"""etcd, API server, controller manager and scheduler, for the cluster or, without nodes, for tests."""

import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.cluster import processes
from dev.cluster.pki import Pki

SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
_FOLDERS = ("control-plane", "etcd", "pki")


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """A running control plane."""

    folder: Path
    kubeconfig: Path
    """Of its administrator."""
    pki: Pki
    binaries: Path


def start_control_plane(
    folder: Path,
    binaries: Path,
    *,
    address: str = "127.0.0.1",
    ports: int = 0,
    gates: Sequence[str] = (),
    apis: Sequence[str] = (),
) -> ControlPlane:
    """Start all four and wait until the API server is ready; `ports` is the first of five, 0 picks free ones.

    `gates` are features to be had that are off by default, `apis` groups and versions that are not served.
    """
    gated = [f"--feature-gates={','.join(f'{gate}=true' for gate in gates)}"] if gates else []
    served = [f"--runtime-config={','.join(f'{api}=true' for api in apis)}"] if apis else []
    first = _Ports(ports)
    server = f"https://{address}:{first.api}"
    pki = Pki(folder=folder / "pki", server=server)
    pki.create()
    hosts = tuple(dict.fromkeys(("127.0.0.1", address, SERVICE_ADDRESS, "localhost", "kubernetes.default.svc")))
    certificate, key = pki.issue("apiserver", user="kube-apiserver", hosts=hosts)
    client, client_key = pki.issue("apiserver-kubelet", user="kube-apiserver", group="system:masters")
    logs = folder / "control-plane"
    etcd = processes.start(
        "etcd",
        [
            str(binaries / "etcd"), f"--data-dir={folder}/etcd", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls=http://127.0.0.1:{first.etcd}", f"--advertise-client-urls=http://127.0.0.1:{first.etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{first.peer}",
        ],
        logs,
    )  # fmt: skip
    api = processes.start(
        "kube-apiserver",
        [
            str(binaries / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{first.etcd}",
            f"--bind-address={address}", f"--secure-port={first.api}",
            f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}", f"--client-ca-file={pki.ca}",
            f"--kubelet-client-certificate={client}", f"--kubelet-client-key={client_key}",
            # Else `kubectl logs` and `exec` look for the node's name in a DNS that is not there.
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={server}", f"--service-account-key-file={pki.folder}/sa.pub",
            f"--service-account-signing-key-file={pki.folder}/sa.key", f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
            # Given even on loopback, else a machine without a default route has no address to guess.
            f"--advertise-address={address}",
            # A loopback address cannot be the endpoint of the kubernetes Service, and a test needs none.
            *(["--endpoint-reconciler-type=none"] if address.startswith("127.") else []),
            "--default-not-ready-toleration-seconds=5", "--default-unreachable-toleration-seconds=5",
            *gated, *served,
        ],
        logs,
    )  # fmt: skip
    admin = pki.kubeconfig(folder / "kubeconfig", user="admin", group="system:masters")
    # Without etcd the API server only waits, so etcd's end is looked at through its own log.
    processes.wait("etcd", lambda: _listens(first.etcd), 30, logs / "etcd.log", etcd)
    processes.wait("the API server", lambda: _ready(server, pki), 60, logs / "kube-apiserver.log", api)
    manager = pki.kubeconfig(folder / "pki/manager.kubeconfig", user="system:kube-controller-manager")
    processes.start(
        "kube-controller-manager",
        [
            str(binaries / "kube-controller-manager"), f"--kubeconfig={manager}", "--bind-address=127.0.0.1",
            f"--secure-port={first.manager}", "--leader-elect=false", "--use-service-account-credentials",
            f"--root-ca-file={pki.ca}", f"--service-account-private-key-file={pki.folder}/sa.key",
            "--node-monitor-grace-period=10s", "--node-monitor-period=1s",
            "--kube-api-qps=1000", "--kube-api-burst=2000", *gated,
        ],
        logs,
    )  # fmt: skip
    scheduler = pki.kubeconfig(folder / "pki/scheduler.kubeconfig", user="system:kube-scheduler")
    processes.start(
        "kube-scheduler",
        [
            str(binaries / "kube-scheduler"), f"--kubeconfig={scheduler}", "--bind-address=127.0.0.1",
            f"--secure-port={first.scheduler}", "--leader-elect=false",
            "--kube-api-qps=1000", "--kube-api-burst=2000", *gated,
        ],
        logs,
    )  # fmt: skip
    return ControlPlane(folder=folder, kubeconfig=admin, pki=pki, binaries=binaries)


def stop_control_plane(folder: Path) -> None:
    """Kill all four; the API server before etcd, whose absence its graceful stop would wait for without end."""
    # By command line: a start that was killed before it noted the pid left no file.
    for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
        processes.kill(processes.mentioning(f"{folder}/", (name,)))


def remove_control_plane(folder: Path) -> None:
    """Stop the lone control plane in `folder` and delete what it wrote; raises RuntimeError naming what stays."""
    stop_control_plane(folder)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "kubeconfig").unlink(missing_ok=True)
    left = [f"process {pid}" for pid in processes.pids(folder).values()]
    left += [str(folder / name) for name in _FOLDERS if (folder / name).exists()]
    if left:
        raise RuntimeError("these are left of the control plane: " + "; ".join(left))


@contextmanager
def control_plane(
    folder: Path, binaries: Path, *, ports: int = 0, gates: Sequence[str] = (), apis: Sequence[str] = ()
) -> Iterator[ControlPlane]:
    """A private control plane without nodes on loopback, for tests; gone when the context ends."""
    try:
        yield start_control_plane(folder, binaries, ports=ports, gates=gates, apis=apis)
    finally:
        stop_control_plane(folder)


class _Ports:
    def __init__(self, first: int) -> None:
        if first:
            numbers = list(range(first, first + 5))
        else:
            held = [socket.socket() for _ in range(5)]
            for one in held:
                one.bind(("127.0.0.1", 0))
            numbers = [one.getsockname()[1] for one in held]
            for one in held:
                one.close()
        self.api, self.etcd, self.peer, self.manager, self.scheduler = numbers


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _ready(server: str, pki: Pki) -> bool:
    context = ssl.create_default_context(cafile=str(pki.ca))
    try:
        with urllib.request.urlopen(f"{server}/readyz", timeout=2, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
