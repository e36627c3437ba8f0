"""kubectl and helm, as the demo and the tests call them."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class CommandError(RuntimeError):
    """A command ended with an error; its message is the command's own."""


@dataclass(frozen=True, kw_only=True)
class Kube:
    """One cluster, by kubeconfig or by context."""

    kubectl: str = "kubectl"
    helm: str = "helm"
    kubeconfig: Path | None = None
    context: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 120) -> str:
        """Standard output of `kubectl ARGUMENTS`; raises CommandError with its standard error."""
        flags = ["--context", self.context] if self.context else []
        return self._run([self.kubectl, *flags, *arguments], stdin, timeout_seconds)

    def run_helm(self, *arguments: str, timeout_seconds: float = 180) -> str:
        """Standard output of `helm ARGUMENTS`; raises CommandError with its standard error."""
        flags = ["--kube-context", self.context] if self.context else []
        return self._run([self.helm, *flags, *arguments], None, timeout_seconds)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ARGUMENTS -o json`."""
        loaded: dict[str, Any] = json.loads(self.run("get", *arguments, "-o", "json"))
        return loaded

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of `kubectl get ARGUMENTS`."""
        found: list[dict[str, Any]] = self.get(*arguments)["items"]
        return found

    def apply(self, *manifests: dict[str, Any]) -> str:
        """`kubectl apply` of objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.run("apply", "-f", "-", stdin=json.dumps(listed))

    def _run(self, command: Sequence[str], stdin: str | None, timeout_seconds: float) -> str:
        environment = {**os.environ, **self.environment}
        if self.kubeconfig is not None:
            environment["KUBECONFIG"] = str(self.kubeconfig)
        ended = subprocess.run(
            command, input=stdin, text=True, capture_output=True, env=environment, timeout=timeout_seconds, check=False
        )
        if ended.returncode:
            raise CommandError(f"{' '.join(command[:4])} …: {(ended.stderr or ended.stdout).strip()}")
        return ended.stdout
