"""The PodGroup of a stage, for schedulers that place as many pods as a world needs, or none."""

from dataclasses import dataclass
from typing import Any, Literal

from skywork_operator.render.pods import metadata
from skywork_operator.world import Run


@dataclass(frozen=True)
class Gang:
    """How one scheduler knows the pods of a group."""

    api_version: str
    scheduler: str
    """Its name, as its project installs it."""
    mark: Literal["labels", "annotations"]
    key: str
    """Label or annotation of a pod that holds the group's name."""


GANGS = {
    "Volcano": Gang("scheduling.volcano.sh/v1beta1", "volcano", "annotations", "scheduling.k8s.io/group-name"),
    "Coscheduling": Gang(
        "scheduling.x-k8s.io/v1alpha1", "scheduler-plugins-scheduler", "labels", "scheduling.x-k8s.io/pod-group"
    ),
}


def gang_of(run: Run) -> Gang | None:
    """The scheduler that the run has chosen, None where its pods are scheduled one by one."""
    return GANGS.get(run.spec.scheduling.gang)


def pod_group(run: Run, name: str, labels: dict[str, str]) -> list[dict[str, Any]]:
    """The stage's PodGroup, where the run has chosen a scheduler that wants one."""
    gang = gang_of(run)
    if gang is None:
        return []
    spec: dict[str, Any] = {"minMember": run.spec.trainer.nodes.min}
    if run.spec.scheduling.gang == "Volcano" and run.spec.scheduling.priority_class_name is not None:
        spec["priorityClassName"] = run.spec.scheduling.priority_class_name
    described = metadata(run, name, labels)
    return [{"apiVersion": gang.api_version, "kind": "PodGroup", "metadata": described, "spec": spec}]


def pod_patch(run: Run, name: str) -> dict[str, Any]:
    """What a pod of the stage says of its group."""
    gang = gang_of(run)
    if gang is None:
        return {}
    return {"metadata": {gang.mark: {gang.key: name}}, "spec": {"schedulerName": gang.scheduler}}
