"""A real Prometheus that scrapes the operator and the trainers, and is asked for what it saw."""

import json
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from dev.demo.faults import wait_http_json
from dev.demo.kube import CommandError, Kube

PORT = 9490


class Prometheus:
    """Prometheus on this machine, told of the pods that want to be scraped; a context manager."""

    def __init__(self, kube: Kube, folder: Path, port: int = PORT) -> None:
        self._folder = folder.resolve()
        self._port = port
        self._kube = kube
        self._stopping = threading.Event()
        self._discovery = threading.Thread(target=self._discover, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it and wait until it answers."""
        binary = shutil.which("prometheus")
        if binary is None:
            raise RuntimeError(
                "prometheus is not installed; on Debian: apt-get install --no-install-recommends prometheus"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "prometheus.yaml"
        config.write_text(yaml.safe_dump(scrape_config(self._targets)))
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
        wait_http_json(f"http://127.0.0.1:{self._port}/api/v1/status/buildinfo", 30)
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
                groups = scrape_targets(self._kube.items("pods", "-A"))
            except (CommandError, subprocess.TimeoutExpired):
                continue
            new = self._targets.with_suffix(".new")
            new.write_text(json.dumps(groups))
            new.rename(self._targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Result vector of an instant query."""
        quoted = urllib.parse.urlencode({"query": expression})
        answer = wait_http_json(f"http://127.0.0.1:{self._port}/api/v1/query?{quoted}", 10)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def scrape_config(targets: Path) -> dict[str, Any]:
    """Scrape what the file `targets` names: Debian's Prometheus is built without discovery through Kubernetes."""
    job = {
        "job_name": "skywork",
        "honor_labels": True,
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
    }
    return {"global": {"scrape_interval": "2s", "scrape_timeout": "1500ms"}, "scrape_configs": [job]}


def scrape_targets(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Running pods that ask to be scraped by the usual annotations, as file_sd groups."""
    groups = []
    for pod in pods:
        annotations = pod["metadata"].get("annotations") or {}
        address = pod["status"].get("podIP")
        if annotations.get("prometheus.io/scrape") == "true" and address and pod["status"]["phase"] == "Running":
            target = f"{address}:{annotations['prometheus.io/port']}"
            groups.append({"targets": [target], "labels": {"pod": pod["metadata"]["name"]}})
    return groups
