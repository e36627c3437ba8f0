"""Why a pod is not running, read off its conditions and container states."""

from typing import Any

_FATAL_WAITING = {
    "ImagePullBackOff": "the image cannot be pulled; check trainer.image and the pull secret",
    "ErrImagePull": "the image cannot be pulled; check trainer.image and the pull secret",
    "ErrImageNeverPull": "the image is not on the node and may not be pulled; check trainer.image",
    "InvalidImageName": "trainer.image is no valid image name",
    "CreateContainerConfigError": "a Secret or ConfigMap named in trainer.template is missing",
    "CreateContainerError": "the container could not be created",
}


def blockage(pod: dict[str, Any]) -> tuple[str, str] | None:
    """Reason and message of what keeps a pod from running; None when nothing does."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _FATAL_WAITING:
            advice = _FATAL_WAITING[waiting["reason"]]
            return waiting["reason"], f"{advice} ({waiting.get('message', '').strip()})"
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason") or "Unschedulable", condition.get("message", "")
    return None
