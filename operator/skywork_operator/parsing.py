"""Objects of the Kubernetes API as plain data; what cannot be read in one pod must not stop the others."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from skywork_trainer.config import MEMBERSHIP_ANNOTATION, AgentStatus, Failure, Membership

from skywork_operator.api import GROUP
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec
from skywork_operator.policies.blockage import blockage, waits_for_volumes
from skywork_operator.render import PHASE_LABEL, PLACEMENT_GATE, PREPARE_LABEL, STAGE_LABEL, TRACKING_FINALIZER
from skywork_operator.times import seconds
from skywork_operator.world import Job, Node, Pod, PrepareJob, Run

_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_VALIDATE_ANNOTATION = f"{GROUP}/validate"
_LONGEST_REQUEST = 64
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_log = logging.getLogger(__name__)
_T = TypeVar("_T", Membership, AgentStatus, Failure)


def parse_run(body: dict[str, Any]) -> Run:
    """The run as typed data; raises ValueError when its spec does not fit the models."""
    metadata = body["metadata"]
    return Run(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        created_seconds=int(seconds(metadata["creationTimestamp"])),
        spec=SkyworkRunSpec.model_validate(body["spec"]),
        status=SkyworkRunStatus.model_validate(body.get("status") or {}),
        validate_request=_request((metadata.get("annotations") or {}).get(_VALIDATE_ANNOTATION, "")),
    )


def _request(value: str) -> str:
    """The value, or what tells it from others: it travels in annotations of pods and in the status."""
    return value if len(value) <= _LONGEST_REQUEST else hashlib.sha256(value.encode()).hexdigest()


def owner(body: dict[str, Any]) -> str | None:
    """UID of the object's controller."""
    owners = body["metadata"].get("ownerReferences") or []
    return next((reference["uid"] for reference in owners if reference.get("controller")), None)


def parse_job(body: dict[str, Any]) -> Job:
    """A stage's Job."""
    complete, failed = _end(body)
    return Job(
        stage=body["metadata"]["labels"][STAGE_LABEL],
        uid=body["metadata"]["uid"],
        complete=complete,
        failed=failed,
        suspended=bool(body["spec"].get("suspend")),
        pods=body["spec"].get("completions"),
        deleting="deletionTimestamp" in body["metadata"],
    )


def parse_prepare_job(body: dict[str, Any], pods: list[dict[str, Any]]) -> PrepareJob:
    """A preparation's Job, joined with its pods."""
    labels = body["metadata"]["labels"]
    complete, failed = _end(body)
    said = [parse_words(Failure, _termination(pod.get("status", {})).get("message")) for pod in pods if _failed(pod)]
    return PrepareJob(
        source=labels[PREPARE_LABEL],
        reading=labels[PHASE_LABEL],
        name=body["metadata"]["name"],
        parts=body["spec"]["completions"],
        succeeded=body.get("status", {}).get("succeeded", 0),
        complete=complete,
        failed=failed,
        suspended=bool(body["spec"].get("suspend")),
        deleting="deletionTimestamp" in body["metadata"],
        failures=tuple(failure for failure in said if failure is not None),
        blocked=next((why for pod in pods if (why := blockage(pod)) is not None), None),
    )


def is_complete(body: dict[str, Any]) -> bool:
    """Whether all of a Job's indexes have succeeded."""
    return _end(body)[0]


def _end(body: dict[str, Any]) -> tuple[bool, str | None]:
    """Whether the Job is complete, and the message it failed with."""
    conditions = {c["type"]: c for c in body.get("status", {}).get("conditions") or [] if c["status"] == "True"}
    failed = conditions.get("Failed") or conditions.get("FailureTarget")
    return "Complete" in conditions, failed.get("message", failed["reason"]) if failed else None


def _failed(pod: dict[str, Any]) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Failed")


@dataclass(frozen=True, slots=True)
class SeenPod:
    """A stage's pod, and what `World` does not tell of it."""

    owner: str | None
    """UID of its Job."""
    pod: Pod
    mounts_since: float | None
    """Since when it has a node, and waits for its containers to be made."""


def see_pod(body: Mapping[str, Any]) -> SeenPod:
    """A stage's pod as the API server shows it."""
    whole = dict(body)
    conditions = {c["type"]: c for c in whole.get("status", {}).get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {}).get("lastTransitionTime")
    return SeenPod(
        owner=owner(whole),
        pod=parse_pod(whole),
        mounts_since=seconds(scheduled) if scheduled and waits_for_volumes(whole) else None,
    )


def see_job(body: Mapping[str, Any]) -> dict[str, Any]:
    """A Job without what nothing is read from: the template, and who has set which field."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    spec = {key: value for key, value in body["spec"].items() if key != "template"}
    return {"metadata": metadata, "spec": spec, "status": body.get("status") or {}}


def parse_pod(body: dict[str, Any]) -> Pod:
    """A stage's pod, before its agent was asked."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    annotations = metadata.get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    ready = conditions.get("Ready", {})
    turned = seconds(ready["lastTransitionTime"]) if "lastTransitionTime" in ready else None
    disrupted = conditions.get("DisruptionTarget", {})
    ended = _termination(status)
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=int(annotations.get(_INDEX_ANNOTATION, "0")),
        ip=status.get("podIP", ""),
        phase=status.get("phase", "Pending"),
        ready=ready.get("status") == "True",
        ready_since=turned if ready.get("status") == "True" else None,
        unready_since=turned if ready.get("status") == "False" else None,
        terminating="deletionTimestamp" in metadata,
        ends_by=seconds(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
        disruption=disrupted.get("reason", "") if disrupted.get("status") == "True" else "",
        out_of_memory=ended.get("reason") == "OOMKilled",
        limited=any(_limits_memory(part) for part in (spec, *spec.get("containers", ()))),
        node=spec.get("nodeName", ""),
        tracked=TRACKING_FINALIZER in (metadata.get("finalizers") or []),
        gated=any(gate["name"] == PLACEMENT_GATE for gate in spec.get("schedulingGates") or []),
        membership=parse_words(Membership, annotations.get(MEMBERSHIP_ANNOTATION)),
        last_words=parse_words(AgentStatus, ended.get("message")),
        blocked=blockage(body),
    )


def _limits_memory(part: Mapping[str, Any]) -> bool:
    """Whether a pod's spec, or a container's, says how much memory may be used."""
    return "memory" in ((part.get("resources") or {}).get("limits") or {})


def parse_node(body: dict[str, Any]) -> Node:
    """A machine of the cluster."""
    conditions = {c["type"]: c for c in body.get("status", {}).get("conditions") or []}
    ready = conditions.get("Ready", {"status": "Unknown"})
    taints = {taint["key"] for taint in body.get("spec", {}).get("taints") or []}
    is_ready = ready["status"] == "True"
    since = ready.get("lastTransitionTime")
    return Node(
        name=body["metadata"]["name"],
        ready=is_ready,
        unready_since=seconds(since) if not is_ready and since else None,
        out_of_service=_OUT_OF_SERVICE in taints,
        labels=body["metadata"].get("labels") or {},
    )


def parse_words(model: type[_T], text: str | None) -> _T | None:
    """What a pod carries, or None: a word that cannot be read is no word."""
    if not text:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError:
        _log.warning("unreadable %s: %.200s", model.__name__, text)
        return None


def _termination(status: dict[str, Any]) -> dict[str, Any]:
    """How the trainer's container ended; empty while it has not."""
    for container in status.get("containerStatuses") or []:
        ended: dict[str, Any] | None = (container.get("state") or {}).get("terminated")
        if container["name"] == "trainer" and ended:
            return ended
    return {}
