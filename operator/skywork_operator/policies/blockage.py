"""Why a run's pods are not running: read off their conditions and container states, and off Events."""

import re
from collections.abc import Sequence
from typing import Any

_NO_IMAGE = "ImagePullBackOff", "the image cannot be pulled; check trainer.image and the pull secret"
_WAITING = {
    "ImagePullBackOff": _NO_IMAGE,
    # A kubelet that tries again says this for a moment: the cause is the same, and so is our word for it.
    "ErrImagePull": _NO_IMAGE,
    "ErrImageNeverPull": (
        "ErrImageNeverPull",
        "the image is not on the node and may not be pulled; check trainer.image",
    ),
    "InvalidImageName": ("InvalidImageName", "trainer.image is no valid image name"),
    "CreateContainerConfigError": (
        "CreateContainerConfigError",
        "a Secret or ConfigMap named in trainer.template is missing",
    ),
    "CreateContainerError": ("CreateContainerError", "the container could not be created"),
}
_MISSING = (
    (re.compile(r'secrets? "([^"]+)" not found', re.IGNORECASE), "SecretMissing", "Secret"),
    (re.compile(r'configmaps? "([^"]+)" not found', re.IGNORECASE), "ConfigMapMissing", "ConfigMap"),
    (re.compile(r'persistentvolumeclaims? "([^"]+)" not found', re.IGNORECASE), "VolumeClaimMissing", "claim"),
    (re.compile(r'serviceaccounts? "([^"]+)" not found', re.IGNORECASE), "ServiceAccountMissing", "ServiceAccount"),
    (re.compile(r"no PriorityClass with name ([^ ]+) was found"), "PriorityClassMissing", "PriorityClass"),
)
_REFUSED = (
    ("exceeded quota", "QuotaExceeded", "the namespace's ResourceQuota does not allow more pods"),
    ("violates PodSecurity", "PodSecurity", "the namespace's Pod Security level refuses trainer.template"),
    ("denied the request", "AdmissionDenied", "a policy of the cluster refuses the pods"),
)


def blockage(pod: dict[str, Any]) -> tuple[str, str] | None:
    """Reason and message of what keeps a pod from running; None when nothing does."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _WAITING:
            cause = waiting.get("message", "").strip()
            reason, advice = _WAITING[waiting["reason"]]
            return _missing(cause) or (reason, f"{advice} ({cause})")
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason") or "Unschedulable"
            # A gate is ours, and opened within one pass: it is no reason.
            return None if reason == "SchedulingGated" else (reason, condition.get("message", ""))
    return None


def job_blockage(events: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Why a Job cannot make pods, by its Events; None when they do not say."""
    refusals = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refusals:
        return None
    cause = max(refusals, key=_time).get("message", "")
    missing = _missing(cause)
    if missing is not None:
        return missing
    for words, reason, advice in _REFUSED:
        if words in cause:
            return reason, f"{advice} ({cause})"
    return "PodCreationFailed", f"the Job cannot make pods ({cause})"


def waits_for_volumes(pod: dict[str, Any]) -> bool:
    """Whether a pod has its node, and its containers wait to be made: perhaps for a volume."""
    status = pod.get("status", {})
    waiting = [(c.get("state") or {}).get("waiting") or {} for c in status.get("containerStatuses") or []]
    scheduled = any(c["type"] == "PodScheduled" and c["status"] == "True" for c in status.get("conditions") or [])
    return (
        status.get("phase") == "Pending"
        and scheduled
        and any(why.get("reason") == "ContainerCreating" for why in waiting)
    )


def mount_blockage(events: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Why a pod's volumes cannot be mounted, by its Events; None when they do not say."""
    failures = [event for event in events if event.get("reason") in ("FailedMount", "FailedAttachVolume")]
    if not failures:
        return None
    cause = max(failures, key=_time).get("message", "")
    return _missing(cause) or ("VolumeNotMounted", f"a volume cannot be mounted ({cause})")


def _missing(cause: str) -> tuple[str, str] | None:
    for pattern, reason, kind in _MISSING:
        found = pattern.search(cause)
        if found:
            return reason, f"{kind} {found[1].rstrip(',')} is missing; make it, or correct trainer.template ({cause})"
    return None


def _time(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
