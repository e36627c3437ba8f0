"""The operator as a process of its own, and what a run says about itself."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.control_plane import ControlPlane
from dev.demo.install import ROOT
from dev.demo.kube import Kube

CHART = ROOT / "charts/skywork-operator"
SYSTEM = "skywork-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:skywork"


class Operator:
    """One operator process."""

    def __init__(self, kubeconfig: Path, log: Path, *options: str, system: str = SYSTEM) -> None:
        self.log = log
        self.metrics, self.health = _free_port(), _free_port()
        command = [sys.executable, "-m", "skywork_operator", "--trainer-image", "trainer:test"]
        command += ["--metrics-port", str(self.metrics), "--health-port", str(self.health), *options]
        with log.open("ab") as out:
            environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": system}
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def page(self, port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def resident_mib(self) -> float:
        """Memory it holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def chart_account(kube: Kube, plane: ControlPlane, system: str, folder: Path, *values: str) -> Path:
    """A kubeconfig with the rights that the chart gives when it is installed into `system`, and no others."""
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": system}})
    sets = [word for value in ("crds.enabled=false", *values) for word in ("--set", value)]
    rendered = kube.run_helm("template", "skywork", str(CHART), "-n", system, "--kube-version", "1.36.3", *sets)
    kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    kube.apply(*[m for m in yaml.safe_load_all(rendered) if m and m["kind"] in kinds])
    token = kube.run("create", "token", "skywork", "-n", system).strip()
    config = json.loads(plane.kubeconfig.read_text())
    config["users"] = [{"name": "admin", "user": {"token": token}}]
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status(kube: Kube, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = kube.get("skyworkrun", "-n", namespace, "demo").get("status", {})
    return found
