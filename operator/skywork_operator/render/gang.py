"""The PodGroup of a stage, for schedulers that place as many pods as a world needs, or none."""

from dataclasses import dataclass
from typing import Any

from skywork_operator.render.pods import metadata
from skywork_operator.world import Run

AUTO = "Auto"


@dataclass(frozen=True, kw_only=True)
class Gang:
    """How one scheduler knows the pods of a group."""

    api_version: str
    """Of its PodGroups."""
    fewest: tuple[str, ...]
    """Field of a PodGroup's spec: how many pods are placed together."""
    mark: tuple[str, ...]
    """Field of a pod that holds its group's name."""
    scheduler: str = ""
    """Its name, as its project installs it; empty for the cluster's own."""
    ranked: bool = False
    """Whether a PodGroup has a priority of its own."""


_POD_MARK = ("spec", "schedulingGroup", "podGroupName")
_FEWEST = ("schedulingPolicy", "gang", "minCount")
GANGS = {
    # Kubernetes' own, as 1.37 serves it, and 1.36 behind feature gates.
    AUTO: (
        Gang(api_version="scheduling.k8s.io/v1beta1", fewest=_FEWEST, mark=_POD_MARK, ranked=True),
        Gang(api_version="scheduling.k8s.io/v1alpha2", fewest=_FEWEST, mark=_POD_MARK),
    ),
    "Volcano": (
        Gang(
            api_version="scheduling.volcano.sh/v1beta1",
            fewest=("minMember",),
            mark=("metadata", "annotations", "scheduling.k8s.io/group-name"),
            scheduler="volcano",
            ranked=True,
        ),
    ),
    "Coscheduling": (
        Gang(
            api_version="scheduling.x-k8s.io/v1alpha1",
            fewest=("minMember",),
            mark=("metadata", "labels", "scheduling.x-k8s.io/pod-group"),
            scheduler="scheduler-plugins-scheduler",
        ),
    ),
}


def gangs_of(run: Run) -> tuple[Gang, ...]:
    """What the run's pods may be grouped by, the best first; nothing where they are scheduled one by one."""
    return GANGS.get(run.spec.scheduling.gang, ())


def wants_gang(run: Run) -> bool:
    """Whether the run has chosen a scheduler, and cannot do without its PodGroups."""
    return bool(gangs_of(run)) and run.spec.scheduling.gang != AUTO


def grouping(run: Run, name: str, labels: dict[str, str], served: str | None) -> tuple[list[Any], dict[str, Any]]:
    """The PodGroup of a stage, and what each of its pods says of that; both empty where no `served` version is known.

    A group of another size is another group: its size is fixed in some versions, and it outlives a Job.
    """
    gang = next((gang for gang in gangs_of(run) if gang.api_version == served), None)
    if gang is None:
        return [], {}
    fewest = run.spec.trainer.nodes.min
    name = f"{name}-{fewest}"
    spec = _nested(gang.fewest, fewest)
    if gang.ranked and run.spec.scheduling.priority_class_name is not None:
        spec["priorityClassName"] = run.spec.scheduling.priority_class_name
    group = {
        "apiVersion": gang.api_version,
        "kind": "PodGroup",
        "metadata": metadata(run, name, labels),
        "spec": spec,
    }
    patch = _nested(gang.mark, name)
    if gang.scheduler:
        patch.setdefault("spec", {})["schedulerName"] = gang.scheduler
    return [group], patch


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for field in reversed(path):
        value = {field: value}
    found: dict[str, Any] = value
    return found
