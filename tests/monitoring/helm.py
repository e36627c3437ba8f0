"""The chart as Helm renders it."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.build import ensure_built
from dev.monitoring.files import CHART

KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
EVERYTHING = (
    "serviceMonitor.enabled=true", "podMonitor.enabled=true", "prometheusRule.enabled=true",
    "grafanaDashboards.enabled=true",
)  # fmt: skip


@functools.cache
def program() -> Path:
    return ensure_built(print) / "helm"


def helm(command: str, *values: str, known: tuple[str, ...] = KINDS) -> subprocess.CompletedProcess[str]:
    """`helm template` or `helm lint --strict` with some values, for a cluster that knows some of the kinds."""
    arguments = [str(program()), *command.split(), *(["skywork"] if command == "template" else []), str(CHART)]
    arguments += ["--namespace", "skywork-system", "--kube-version", "1.36.0"]
    arguments += [word for value in values for word in ("--set", value)]
    if command == "template":
        arguments += [word for kind in known for word in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")]
    return subprocess.run(arguments, text=True, capture_output=True, check=False)


def rendered(*values: str, known: tuple[str, ...] = KINDS) -> list[dict[str, Any]]:
    ended = helm("template", *values, known=known)
    assert ended.returncode == 0, ended.stderr
    return [found for found in yaml.safe_load_all(ended.stdout) if found]


def of_kind(kind: str, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]
