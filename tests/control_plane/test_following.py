"""`kubectl skywork watch` and `report` by name, through the real kubectl and API server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.control_plane import ControlPlane
from dev.demo.kube import Kube
from tests.control_plane.running import Operator, status
from tests.control_plane.test_crd import changed, manifest
from tests.unit.report.test_report import trained
from tests.waiting import until

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def skywork(plane: ControlPlane, kube: Kube) -> Start:
    """Start `kubectl skywork …` as a person would, with the plugin and kubectl on the PATH."""

    def start(*arguments: str, kubeconfig: Path = plane.kubeconfig) -> "subprocess.Popen[str]":
        path = f"{Path(sys.executable).parent}:{plane.binaries}"
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig)}
        command = [kube.kubectl, "skywork", *arguments]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_run_is_followed_from_why_it_waits_to_its_deletion(
    kube: Kube, namespace: str, start: Callable[[], Operator], skywork: Start
) -> None:
    start()
    kube.apply(manifest(namespace))
    until(lambda: "Unschedulable" in json.dumps(status(kube, namespace).get("conditions", [])), 60)
    code, out, err = ended(skywork("watch", "demo", "--once", "-n", namespace))
    assert (code, err) == (0, "")
    assert f"{namespace}/demo" in out and "Unschedulable" in out
    assert "StageStarted" in out, "its events are there"
    process = skywork("watch", "demo", "-n", namespace, "--interval", "0.5")
    assert process.stdout is not None
    assert f"{namespace}/demo" in process.stdout.readline()
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")
    code, _, err = ended(process)
    assert code == 1 and "the run was deleted" in err


def test_a_status_as_the_trainer_makes_it_is_read_as_it_is_stored(kube: Kube, namespace: str, skywork: Start) -> None:
    kube.apply(manifest(namespace))
    told: dict[str, Any] = {
        "state": "Succeeded",
        "step": 42,
        "tokens": 1000,
        "validationLoss": [{"domain": "zh", "loss": "2.5", "step": 42}],
        "conditions": [
            {
                "type": "Succeeded",
                "status": "True",
                "reason": "AllStagesTrained",
                "message": "all is trained",
                "lastTransitionTime": "2026-11-24T00:00:00Z",
            }
        ],
    }
    patch = ("patch", "skyworkrun", "demo", "-n", namespace, "--subresource=status", "--type=merge", "-p")
    kube.run(*patch, json.dumps({"status": told}))
    code, out, err = ended(skywork("watch", "demo", "-n", namespace))
    assert (code, err) == (0, "")
    assert "Succeeded: AllStagesTrained: all is trained" in out and "zh 2.5000" in out
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_a_report_by_name_reads_the_run_s_own_storage(
    kube: Kube, namespace: str, skywork: Start, tmp_path: Path
) -> None:
    run = trained(tmp_path)
    kube.apply(manifest(namespace, changed("checkpoints.uri", run.store.uri)))
    code, out, err = ended(skywork("report", "demo", "-n", namespace, "--json"))
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["runs"]
    assert (found["uri"], found["step"]) == (run.store.uri, run.step)
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_what_is_not_there_or_not_allowed_is_told(
    kube: Kube, account: Path, namespace: str, skywork: Start, tmp_path: Path
) -> None:
    code, _, err = ended(skywork("watch", "nobody", "-n", namespace))
    assert code == 64 and "NotFound" in err
    token = kube.run("create", "token", "default", "-n", namespace).strip()
    config = json.loads(account.read_text())
    config["users"] = [{"name": "admin", "user": {"token": token}}]
    nobody = tmp_path / "kubeconfig"
    nobody.write_text(json.dumps(config))
    code, _, err = ended(skywork("watch", "demo", "-n", namespace, kubeconfig=nobody))
    assert code == 64 and "Forbidden" in err
    gone = tmp_path / "gone"
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    gone.write_text(json.dumps(config))
    code, _, err = ended(skywork("report", "demo", "-n", namespace, "--json", kubeconfig=gone))
    assert code == 1 and "Unreachable" in err
