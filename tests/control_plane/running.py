"""The operator as a process of its own, and what a run says about itself."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from dev.demo.install import ROOT
from dev.demo.kube import Kube

CHART = ROOT / "charts/skywork-operator"
SYSTEM = "skywork-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:skywork"


class Operator:
    """One operator process."""

    def __init__(self, kubeconfig: Path, log: Path, *options: str) -> None:
        self.log = log
        self.metrics, self.health = _free_port(), _free_port()
        command = [sys.executable, "-m", "skywork_operator", "--trainer-image", "trainer:test"]
        command += ["--metrics-port", str(self.metrics), "--health-port", str(self.health), *options]
        with log.open("ab") as out:
            environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": SYSTEM}
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def page(self, port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status(kube: Kube, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = kube.get("skyworkrun", "-n", namespace, "demo").get("status", {})
    return found
