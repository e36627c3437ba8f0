"""A real Prometheus that scrapes operator and trainers, evaluates the chart's rules, and is asked for what it saw."""

import json
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from dev.demo.faults import wait_http_json
from dev.demo.kube import CommandError, Kube
from dev.monitoring.files import CHART

PORT = 9490
SCRAPE_SECONDS = 2.0


Targets = Callable[[], list[dict[str, Any]]]
"""Says what to scrape now, as file_sd groups."""


class Prometheus:
    """Prometheus on this machine, told again and again what to scrape; a context manager."""

    def __init__(
        self, targets: Targets, folder: Path, *, port: int = PORT, scrape_seconds: float = SCRAPE_SECONDS
    ) -> None:
        self._folder = folder.resolve()
        self._port = port
        self._find = targets
        self._scrape_seconds = scrape_seconds
        self._stopping = threading.Event()
        self._discovery = threading.Thread(target=self._discover, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        """Start it and wait until it answers."""
        binary = shutil.which("prometheus")
        if binary is None:
            raise RuntimeError(
                "prometheus is not installed; on Debian: apt-get install --no-install-recommends prometheus"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "prometheus.yaml"
        rules = evaluated_rules(CHART / "rules", self._folder / "rules", self._scrape_seconds)
        config.write_text(yaml.safe_dump(scrape_config(self._targets, rules, self._scrape_seconds)))
        self._discovery.start()
        data = tempfile.mkdtemp(dir=self._folder)
        log = (self._folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                binary, f"--config.file={config}", f"--storage.tsdb.path={data}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
        wait_http_json(f"{self.address}/api/v1/status/buildinfo", 30)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Stop it."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    @property
    def _targets(self) -> Path:
        return self._folder / "targets.json"

    def _discover(self) -> None:
        while not self._stopping.wait(1.0):
            try:
                groups = self._find()
            except (CommandError, subprocess.TimeoutExpired):
                continue
            new = self._targets.with_suffix(".new")
            new.write_text(json.dumps(groups))
            new.rename(self._targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Result vector of an instant query."""
        quoted = urllib.parse.urlencode({"query": expression})
        answer = wait_http_json(f"{self.address}/api/v1/query?{quoted}", 10)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def scrape_config(targets: Path, rules: Path, scrape_seconds: float) -> dict[str, Any]:
    """Scrape what the file `targets` names: Debian's Prometheus is built without discovery through Kubernetes."""
    job = {
        "job_name": "skywork",
        "honor_labels": True,
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
    }
    every = f"{round(1000 * scrape_seconds)}ms"
    return {
        "global": {
            "scrape_interval": every,
            "scrape_timeout": f"{round(750 * scrape_seconds)}ms",
            "evaluation_interval": every,
        },
        "rule_files": [f"{rules}/*.yaml"],
        "scrape_configs": [job],
    }


def evaluated_rules(chart: Path, folder: Path, every_seconds: float) -> Path:
    """Folder with the chart's rules, evaluated as often as is scraped: a run of minutes has no time for more seldom."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(chart.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            group["interval"] = f"{round(1000 * every_seconds)}ms"
        (folder / path.name).write_text(yaml.safe_dump(content))
    return folder


def pods_to_scrape(kube: Kube) -> Targets:
    """What to scrape in a cluster."""
    return lambda: scrape_targets(kube.items("pods", "-A"))


def scrape_targets(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Running pods that ask to be scraped by the usual annotations, as file_sd groups.

    They get the labels that the chart's monitors give; what a series says of itself wins over them.
    """
    groups = []
    for pod in pods:
        annotations = pod["metadata"].get("annotations") or {}
        address = pod["status"].get("podIP")
        if annotations.get("prometheus.io/scrape") == "true" and address and pod["status"]["phase"] == "Running":
            labels = {
                "namespace": pod["metadata"]["namespace"],
                "pod": pod["metadata"]["name"],
                "node": pod["spec"].get("nodeName", ""),
            }
            groups.append({"targets": [f"{address}:{annotations['prometheus.io/port']}"], "labels": labels})
    return groups
