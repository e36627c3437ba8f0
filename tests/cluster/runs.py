"""Short runs on the development cluster, and waiting for what becomes of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from dev.demo import faults, install
from dev.demo.environment import Environment
from dev.demo.install import RUN_NAMESPACE
from tests.waiting import until

BATCH_TOKENS = 3072
PARTS = ("detected", "decided", "delivered", "started", "initialized", "restored", "firstStep")


def manifest(name: str, *, steps: int = 60, nodes: int = 3, **changes: Any) -> dict[str, Any]:
    """A run of one stage of `steps` steps on the demo's data."""
    template = {"spec": {"containers": [{"name": "trainer", "envFrom": [{"secretRef": {"name": "object-storage"}}]}]}}
    data = f"s3://{install.BUCKET}/data"
    spec: dict[str, Any] = {
        "model": {"preset": "tiny"},
        "tokenizer": {"uri": f"{data}/tokenizer"},
        "trainer": {"nodes": {"min": nodes, "max": nodes}, "template": template},
        "engine": {"zeroStage": 1, "microBatchSequences": 8},
        "batch": {"sequenceLength": 128, "globalTokens": str(BATCH_TOKENS)},
        "sources": [{"name": "main", "uri": f"{data}/main"}],
        "validation": {"everyTokens": "1G", "windows": 4, "domains": [{"name": "zh", "uri": f"{data}/zh"}]},
        "checkpoints": {"uri": f"s3://{install.BUCKET}/runs/{name}", "every": "3s", "keepLast": 2},
        "stages": [
            {
                "name": "general",
                "tokens": str(steps * BATCH_TOKENS),
                "learningRate": {"schedule": "Cosine", "peak": "3e-3", "final": "6e-4"},
                "mixture": [{"source": "main"}],
            }
        ],
    }
    metadata = {"name": name, "namespace": RUN_NAMESPACE}
    return {"apiVersion": "skywork.dev/v1alpha1", "kind": "SkyworkRun", "metadata": metadata, "spec": spec | changes}


def start(environment: Environment, run: dict[str, Any], *, fresh: bool = True) -> None:
    """Apply a run; `fresh` removes what an earlier test session left of it first."""
    name = run["metadata"]["name"]
    remove(environment, name)
    if fresh:
        install.forget_run(environment.storage, f"runs/{name}/")
    environment.kube.apply(run)


def remove(environment: Environment, name: str) -> None:
    """Delete a run and wait until its pods are gone."""
    arguments = ["skyworkrun", "-n", RUN_NAMESPACE, name, "--ignore-not-found", "--cascade=foreground"]
    environment.kube.run("delete", *arguments)
    until(lambda: not environment.kube.items("pods", "-n", RUN_NAMESPACE, "-l", f"skywork.dev/run={name}"))


def get(environment: Environment, name: str) -> dict[str, Any]:
    """The run's status."""
    status: dict[str, Any] = environment.kube.get("skyworkrun", "-n", RUN_NAMESPACE, name).get("status", {})
    return status


def at_step(environment: Environment, name: str, step: int) -> dict[str, Any]:
    """Status of a run that trains and has done `step` steps."""

    def reached() -> dict[str, Any] | None:
        status = get(environment, name)
        assert status.get("state") != "Failed", status["conditions"]
        return status if status.get("state") == "Training" and status.get("step", 0) >= step else None

    found: dict[str, Any] = until(reached)
    return found


def finished(environment: Environment, name: str, state: str = "Succeeded", seconds: float = 240) -> dict[str, Any]:
    """Status of a run that ended as `state`."""

    def ended() -> dict[str, Any] | None:
        status = get(environment, name)
        assert status.get("state") not in ({"Failed", "Succeeded"} - {state}), status["conditions"]
        return status if status.get("state") == state else None

    # Seldom: each look is a process, and training has two cores at most here.
    found: dict[str, Any] = until(ended, seconds, 1.0)
    return found


def pods(environment: Environment, name: str) -> list[dict[str, Any]]:
    """The run's pods that have not ended."""
    return faults.run_pods(environment.kube, RUN_NAMESPACE, name, "general")


def audit(environment: Environment, name: str) -> dict[str, Any]:
    """What `skywork checkpoints audit` counts."""
    command = [str(Path(sys.executable).parent / "skywork"), "checkpoints", "audit", "--json"]
    variables = {**os.environ, **environment.storage.environment()}
    uri = f"s3://{install.BUCKET}/runs/{name}"
    text = subprocess.run([*command, uri], env=variables, text=True, capture_output=True, check=True).stdout
    counted: dict[str, Any] = json.loads(text)
    return counted


def train_here(environment: Environment, run: dict[str, Any], folder: Path, *, steps: int) -> int:
    """Train on this machine, without Kubernetes, and interrupt it behind so many steps; return how many were saved."""
    path, progress = folder / "run.json", folder / "state/node-0/workers/1/progress.json"
    path.write_text(json.dumps(run))
    command = [sys.executable, "-m", "skywork_operator.standalone", "--run", str(path)]
    folders = ["--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache")]
    variables = {**os.environ, **environment.storage.environment()}
    with subprocess.Popen([*command, *folders], env=variables) as process:
        until(lambda: process.poll() is None and progress.exists() and _step(progress) >= steps, 90)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    return _step(progress)


def _step(progress: Path) -> int:
    step: int = json.loads(progress.read_text())["step"]
    return step
