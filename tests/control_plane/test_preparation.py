"""Preparing sources on a real API server and its Job controller; the tests play the kubelet and end the pods."""

import json
from collections.abc import Callable
from typing import Any

from dev.demo.kube import Kube
from tests.control_plane.running import Operator, status
from tests.control_plane.test_crd import changed, manifest
from tests.waiting import until

PREPARE = {"inputs": ["s3://text/*.jsonl"], "pods": 2, "duplicates": {}}
TRAINER = {
    "nodes": {"min": 2, "max": 3},
    "template": {"spec": {"containers": [{"name": "trainer", "envFrom": [{"secretRef": {"name": "object-storage"}}]}]}},
}


def preparing(namespace: str) -> dict[str, Any]:
    """The example run, whose first source is made from text by two pods."""
    return manifest(namespace, changed("sources.0.prepare", PREPARE) | {"trainer": TRAINER})


def jobs(kube: Kube, namespace: str) -> set[str]:
    return {job["metadata"]["name"] for job in kube.items("jobs", "-n", namespace)}


def pods(kube: Kube, namespace: str, job: str) -> list[dict[str, Any]]:
    return kube.items("pods", "-n", namespace, "-l", f"batch.kubernetes.io/job-name={job}")


def end(kube: Kube, namespace: str, pod: dict[str, Any], code: int, message: str = "") -> None:
    """Say what a kubelet says of a pod whose trainer has exited."""
    ended = {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}
    container = {
        "name": "trainer", "image": "x", "imageID": "x", "ready": False, "restartCount": 0,
        "state": {"terminated": ended},
    }  # fmt: skip
    said = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}
    name = pod["metadata"]["name"]
    patch = json.dumps({"status": said})
    kube.run("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def finish(kube: Kube, namespace: str, job: str, parts: int = 2) -> None:
    for pod in until(lambda: len(found := pods(kube, namespace, job)) == parts and found, 60):
        end(kube, namespace, pod, 0)


def condition(kube: Kube, namespace: str, type: str) -> dict[str, Any]:
    found = [c for c in status(kube, namespace).get("conditions", []) if c["type"] == type]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


def test_a_source_is_scanned_then_written_and_only_then_its_stage_starts(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    operator = start()
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": label}})
    kube.apply(preparing(namespace))
    (first, second) = until(lambda: len(found := pods(kube, namespace, "demo-prepare-main-scan")) == 2 and found, 60)
    (container,) = first["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "object-storage"}}]
    assert "JOB_COMPLETION_INDEX" in [entry["name"] for entry in container["env"]]
    assert jobs(kube, namespace) == {"demo-prepare-main-scan"}
    assert status(kube, namespace)["state"] == "Preparing"

    end(kube, namespace, first, 0)
    until(lambda: "scanning, 1 of 2 parts done" in condition(kube, namespace, "Prepared")["message"], 60)
    assert jobs(kube, namespace) == {"demo-prepare-main-scan"}
    end(kube, namespace, second, 0)
    until(lambda: "demo-prepare-main-write" in jobs(kube, namespace), 60)
    assert status(kube, namespace)["sources"] == [{"name": "main", "phase": "Writing"}]
    assert "demo-general" not in jobs(kube, namespace)

    finish(kube, namespace, "demo-prepare-main-write")
    until(lambda: "demo-general" in jobs(kube, namespace), 60)
    assert condition(kube, namespace, "Prepared")["status"] == "True"
    said = status(kube, namespace)
    assert (said["sources"], said["stages"][0]["name"]) == ([{"name": "main", "phase": "Prepared"}], "general")
    reasons = {"PrepareStarted", "SourcePrepared", "StageStarted"}
    until(lambda: reasons <= {e["reason"] for e in kube.items("events", "-n", namespace)}, 30)
    until(lambda: len(pods(kube, namespace, "demo-general")) == 3, 60)
    assert "403" not in operator.log.read_text()
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")
    until(lambda: not kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run=demo"), 60)


def test_a_prepare_job_that_is_deleted_by_hand_is_made_again(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    start()
    kube.apply(preparing(namespace))
    finish(kube, namespace, "demo-prepare-main-scan")
    until(lambda: len(pods(kube, namespace, "demo-prepare-main-write")) == 2, 60)
    uid = kube.get("job", "-n", namespace, "demo-prepare-main-write")["metadata"]["uid"]
    kube.run("delete", "job", "-n", namespace, "demo-prepare-main-write")

    def again() -> bool:
        found = kube.items("jobs", "-n", namespace)
        return any(
            job["metadata"]["name"] == "demo-prepare-main-write" and job["metadata"]["uid"] != uid for job in found
        )

    until(again, 60)
    finish(kube, namespace, "demo-prepare-main-write")
    until(lambda: "demo-general" in jobs(kube, namespace), 60)
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_a_preparation_that_cannot_succeed_fails_the_run_in_its_pod_s_words(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    start()
    kube.apply(preparing(namespace))
    found = until(lambda: len(f := pods(kube, namespace, "demo-prepare-main-scan")) == 2 and f, 60)
    words = {"time": 1.0, "rank": 1, "reason": "NoInput", "message": "s3://text/*.jsonl: no file", "retryable": False}
    end(kube, namespace, found[1], 64, json.dumps(words))
    until(lambda: condition(kube, namespace, "Failed")["status"] == "True", 60)
    failed = condition(kube, namespace, "Failed")
    assert (failed["reason"], failed["message"]) == ("NoInput", "source main: s3://text/*.jsonl: no file")
    assert condition(kube, namespace, "Prepared")["reason"] == "NoInput"
    assert jobs(kube, namespace) == {"demo-prepare-main-scan"}
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def test_a_circle_of_known_sources_becomes_a_condition_and_makes_no_job(
    kube: Kube, namespace: str, start: Callable[[], Operator]
) -> None:
    start()
    spec = changed("sources.0.prepare", PREPARE | {"duplicates": {"known": ["stem"]}})
    spec["sources"][1]["prepare"] = PREPARE | {"duplicates": {"known": ["main"]}}
    kube.apply(manifest(namespace, spec))
    until(lambda: condition(kube, namespace, "Accepted")["reason"] == "InvalidSpec", 60)
    assert "in a circle: main -> stem -> main" in condition(kube, namespace, "Accepted")["message"]
    assert jobs(kube, namespace) == set()
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")
