"""Kubeflow's training-operator v1.8.1 as a process beside the control plane, without its webhooks and gangs."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from dev.bench.figures import say
from dev.bench.load import Workbench
from dev.cluster import processes
from dev.cluster.build import Group, build
from dev.cluster.paths import cache

NAME = "training-operator v1.8.1"
PATH = ("kubeflow.org", "v1", "pytorchjobs")
_MODULE = "github.com/kubeflow/training-operator"
_PROGRAM = "training-operator.v1"
_SOURCES = Path(__file__).parent / "peers"
_SECRET = "training-operator-webhook-cert"
_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")
"""Where it looks for the certificate that it makes itself and otherwise finds mounted: no flag changes that."""
_METRICS_PORT, _HEALTH_PORT, _WEBHOOK_PORT = 19501, 19502, 19503


def manifest(name: str, pods: int) -> dict[str, Any]:
    """A job of so many pods."""
    container = {"name": "pytorch", "image": "none", "command": ["sleep", "inf"]}
    template = {"spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}
    replicas = {"Master": {"replicas": 1, "restartPolicy": "OnFailure", "template": template}}
    if pods > 1:
        replicas["Worker"] = {"replicas": pods - 1, "restartPolicy": "OnFailure", "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": replicas},
    }


def is_active(status: dict[str, Any], pods: int) -> bool:
    """Whether a job says that it runs with all its pods."""
    runs = any(c["type"] == "Running" and c["status"] == "True" for c in status.get("conditions") or [])
    return runs and sum(r.get("active", 0) for r in (status.get("replicaStatuses") or {}).values()) == pods


_UNLIMITED = """
func unlimited() *rest.Config {
	c := ctrl.GetConfigOrDie()
	c.QPS, c.Burst = 1000, 2000
	return c
}
"""


class Kubeflow:
    """The peer on a workbench."""

    def __init__(self, bench: Workbench, *, unlimited: bool) -> None:
        self._bench, self._unlimited = bench, unlimited

    def start(self) -> None:
        """Install the CRD and start it; returns when it is ready."""
        bench, folder = self._bench, self._bench.plane.folder
        crds = _module_folder() / "manifests/base/crds"
        bench.kubectl("create", *[f"-f={path}" for path in sorted(crds.glob("kubeflow.org_*.yaml"))])
        bench.kubectl("create", "namespace", "kubeflow")
        named = {"name": _SECRET, "namespace": "kubeflow"}
        bench.apply({"apiVersion": "v1", "kind": "Secret", "metadata": named}, *_webhooks())
        program = _unlimited() if self._unlimited else _shipped()
        command = [
            str(program), f"--kubeconfig={bench.kubeconfig}", "--zap-log-level=error",
            f"--metrics-bind-address=:{_METRICS_PORT}", f"--health-probe-bind-address=:{_HEALTH_PORT}",
            f"--webhook-server-port={_WEBHOOK_PORT}", *(["--controller-threads=10"] if self._unlimited else []),
        ]  # fmt: skip
        shutil.rmtree(_CERTIFICATES, ignore_errors=True)
        _CERTIFICATES.mkdir(parents=True)
        bench.start_operator(command, {})
        log = folder / "operator.log"
        processes.wait("the webhook's certificate", lambda: bool(self._secret()), 90, log, bench.operator)
        for name, text in self._secret().items():
            (_CERTIFICATES / name).write_bytes(base64.b64decode(text))
        processes.wait("the peer", _is_ready, 120, log, bench.operator)

    def _secret(self) -> dict[str, str]:
        said = json.loads(self._bench.kubectl("get", "secret", _SECRET, "-n", "kubeflow", "-o", "json"))
        found: dict[str, str] = said.get("data") or {}
        return found if found.get("tls.crt") else {}


def _webhooks() -> list[dict[str, Any]]:
    """What it insists on writing its certificate into, before it is ready; never called, for there is no such kind."""
    kind, name = "ValidatingWebhookConfiguration", "validator.training-operator.kubeflow.org"
    service = {"name": "training-operator", "namespace": "kubeflow", "path": "/"}
    rule = {"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}
    hooks = [
        {
            "name": f"validator.{job}.training-operator.kubeflow.org",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": service},
            "rules": [rule],
        }
        for job in ("mxjob", "paddlejob", "pytorchjob", "tfjob", "xgboostjob")
    ]
    group = "admissionregistration.k8s.io/v1"
    return [{"apiVersion": group, "kind": kind, "metadata": {"name": name}, "webhooks": hooks}]


def _is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{_HEALTH_PORT}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _shipped() -> Path:
    return build(Group(name="training-operator", programs=(_PROGRAM,), source=_SOURCES), say) / _PROGRAM


def _module_folder() -> Path:
    command = ["go", "mod", "download", "-json", _MODULE]
    ended = subprocess.run(command, cwd=_SOURCES / "training-operator", capture_output=True, text=True, check=True)
    return Path(json.loads(ended.stdout)["Dir"])


def _unlimited() -> Path:
    """The same program without its client's limit of 20 requests a second, which no flag changes.

    A module's files cannot be overlaid: its main program is built as one of ours, from a copy that is made here.
    """
    built = cache() / "bin" / "training-operator-unlimited-1.8.1"
    if built.exists():
        return built
    say("building training-operator without its client's limit")
    with tempfile.TemporaryDirectory() as folder:
        for file in (_SOURCES / "training-operator").iterdir():
            shutil.copy(file, folder)
        text = (_module_folder() / "cmd/training-operator.v1/main.go").read_text()
        lifted = text.replace("ctrl.NewManager(ctrl.GetConfigOrDie(), ", "ctrl.NewManager(unlimited(), ")
        lifted = lifted.replace("import (", 'import (\n\t"k8s.io/client-go/rest"', 1)
        (Path(folder) / "main.go").write_text(lifted + _UNLIMITED)
        command = ["go", "build", "-mod=mod", "-o", str(built), "."]
        environment = {**os.environ, "CGO_ENABLED": "0"}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"building training-operator failed:\n{ended.stderr[-2000:]}")
    return built
