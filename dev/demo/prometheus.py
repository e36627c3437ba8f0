"""A real Prometheus that scrapes the operator and the trainers, and is asked for what it saw."""

import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from dev.demo.faults import wait_http_json

PORT = 9490
_POD_LABEL = "__meta_kubernetes_pod_label_app_kubernetes_io_"


class Prometheus:
    """Prometheus on this machine, discovering pods through the API server; a context manager."""

    def __init__(self, kubeconfig: Path, folder: Path, port: int = PORT) -> None:
        self._folder = folder
        self._port = port
        self._kubeconfig = kubeconfig
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
        config.write_text(yaml.safe_dump(scrape_config(str(self._kubeconfig))))
        data = tempfile.mkdtemp(dir=self._folder)
        log = (self._folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [binary, f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{self._port}"],
            stdout=log,
            stderr=log,
        )  # fmt: skip
        wait_http_json(f"http://127.0.0.1:{self._port}/api/v1/status/buildinfo", 30)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Result vector of an instant query."""
        quoted = urllib.parse.urlencode({"query": expression})
        answer = wait_http_json(f"http://127.0.0.1:{self._port}/api/v1/query?{quoted}", 10)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def scrape_config(kubeconfig: str) -> dict[str, Any]:
    """Scrape every pod of ours that says it wants to be scraped, by its annotations."""
    keep = {
        "source_labels": ["__meta_kubernetes_pod_annotation_prometheus_io_scrape", f"{_POD_LABEL}name"],
        "regex": "true;skywork-.*",
        "action": "keep",
    }
    # One target a pod, not one a declared port.
    address = {
        "source_labels": ["__meta_kubernetes_pod_ip", "__meta_kubernetes_pod_annotation_prometheus_io_port"],
        "regex": "(.+);(.+)",
        "replacement": "$1:$2",
        "target_label": "__address__",
    }
    one_port = {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "metrics", "action": "keep"}
    pod = {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"}
    job = {
        "job_name": "skywork",
        "honor_labels": True,
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": kubeconfig}],
        "relabel_configs": [keep, one_port, address, pod],
    }
    return {"global": {"scrape_interval": "2s", "scrape_timeout": "1500ms"}, "scrape_configs": [job]}
