"""Faults that the demo and the cluster tests put into a run, and how long it takes to train again."""

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from skywork_operator.render import RUN_LABEL, STAGE_LABEL
from skywork_trainer.config import AGENT_PORT, AgentStatus

from dev.demo.kube import Kube


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and its price."""

    kind: str
    stage: str
    pod: str
    step: int
    secondsToNextStep: float

    def to_json(self) -> dict[str, Any]:
        """As it stands in the report."""
        return asdict(self)


def run_pods(kube: Kube, namespace: str, run: str, stage: str) -> list[dict[str, Any]]:
    """Pods of a stage that have not ended, by completion index."""
    labels = f"{RUN_LABEL}={run},{STAGE_LABEL}={stage}"
    pods = kube.items("pods", "-n", namespace, "-l", labels)
    alive = [p for p in pods if p["status"].get("phase") in ("Pending", "Running")]
    return sorted(alive, key=lambda p: int(p["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]))


def agent_status(kube: Kube, namespace: str, pod: dict[str, Any]) -> AgentStatus | None:
    """What a pod's agent says, asked through the API server so that it works on any cluster; None if it is silent."""
    name = pod["metadata"]["name"]
    try:
        text = kube.run("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{name}:{AGENT_PORT}/proxy/status")
    except RuntimeError:
        return None
    return AgentStatus.model_validate_json(text)


def kill_worker(kube: Kube, namespace: str, pod: dict[str, Any]) -> None:
    """SIGKILL one worker process of a pod."""
    signal_worker(kube, namespace, pod, "SIGKILL")


def signal_worker(kube: Kube, namespace: str, pod: dict[str, Any], signal: str) -> None:
    """Send a signal to one worker process inside a pod, from inside the pod."""
    name = pod["metadata"]["name"]
    said = agent_status(kube, namespace, pod)
    if said is None or not said.workers:
        raise RuntimeError(f"pod {name} has no worker to send a signal to")
    script = f"import os, signal; os.kill({said.workers[0]}, signal.{signal})"
    python = pod["spec"]["containers"][0]["command"][0].rsplit("/", 1)
    interpreter = f"{python[0]}/python" if len(python) == 2 else "python3"
    kube.run("exec", "-n", namespace, name, "-c", "trainer", "--", interpreter, "-c", script)


def delete_pod(kube: Kube, namespace: str, pod: dict[str, Any]) -> None:
    """Delete a pod and do not wait for it."""
    kube.run("delete", "pod", "-n", namespace, pod["metadata"]["name"], "--wait=false")


def first_step_after(
    kube: Kube, namespace: str, run: str, *, generation: int, timeout_seconds: float, tick: Callable[[], None]
) -> float:
    """Unix time at which a generation newer than `generation` finished its first step, by the trainer's own clock."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        tick()
        body = kube.get("skyworkrun", "-n", namespace, run)
        status = body.get("status", {})
        if status.get("state") in ("Failed", "Succeeded"):
            raise RuntimeError(f"run {run} is {status['state']} while a recovery was waited for")
        if status.get("generation", 0) > generation:
            for pod in run_pods(kube, namespace, run, status["stage"]):
                said = agent_status(kube, namespace, pod)
                if said and said.progress and said.generation > generation and said.progress.first_step_time:
                    return said.progress.first_step_time
        time.sleep(0.2)
    raise RuntimeError(f"run {run} did not train again within {timeout_seconds:.0f} s")


def wait_http_json(url: str, timeout_seconds: float) -> Any:
    """JSON at `url`, retried until it answers."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
