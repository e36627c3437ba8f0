"""What all objects of a run share: labels, owner, ConfigMap, Indexed Job, and a pod that passes `restricted`."""

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

from skywork_trainer import config as trainer

from skywork_operator.api import GROUP, KIND, VERSION
from skywork_operator.render.merging import merge
from skywork_operator.world import Run

RUN_LABEL = f"{GROUP}/run"
STAGE_LABEL = f"{GROUP}/stage"
PREPARE_LABEL = f"{GROUP}/prepare"
PHASE_LABEL = f"{GROUP}/phase"
PLACEMENT_GATE = f"{GROUP}/placement"
"""Scheduling gate of training pods: the operator opens it once it has said which nodes they stay away from."""
TRACKING_FINALIZER = "batch.kubernetes.io/job-tracking"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "skywork-operator"
GRACE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the cluster's administrator gives every run: the image, and a pod template under each run's own."""

    image: str
    template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One Indexed Job of a run, as far as its kind decides it."""

    name: str
    labels: dict[str, str]
    """What tells this Job and its pods from the others of the run."""
    pods: int
    config_map: str
    config_path: str
    """Folder where the ConfigMap is mounted."""
    text: str
    """What the ConfigMap holds."""
    retries: dict[str, Any]
    """Fields of the Job's spec that say when it gives up."""
    container: dict[str, Any]
    """Patch of the container: command, arguments, probes, resources."""
    pod: dict[str, Any] = field(default_factory=dict)
    """Patch of the pod template."""


def metadata(run: Run, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Metadata of an object that belongs to `run` and goes when it goes."""
    return {
        "name": name,
        "namespace": run.namespace,
        "labels": _all_labels(run, labels),
        "ownerReferences": [
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "name": run.name,
                "uid": run.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _all_labels(run: Run, labels: dict[str, str]) -> dict[str, str]:
    return {
        RUN_LABEL: run.name,
        **labels,
        MANAGED_LABEL: MANAGER,
        "app.kubernetes.io/name": "skywork-trainer",
        "app.kubernetes.io/instance": run.name,
    }


def config_map(run: Run, name: str, labels: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    """An immutable ConfigMap: a pod that comes back reads what the first one read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, name, labels),
        "immutable": True,
        "data": data,
    }


def indexed_job(run: Run, work: Work, defaults: Defaults) -> dict[str, Any]:
    """The Indexed Job of `work`, all of whose pods run at once; in a queue it waits, suspended, for Kueue."""
    queue = run.spec.scheduling.queue_name
    described = metadata(run, work.name, work.labels)
    if queue is not None:
        described["labels"][QUEUE_LABEL] = queue
        described["annotations"] = {ELASTIC_ANNOTATION: "true"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": described,
        "spec": {
            **({"suspend": True} if queue is not None else {}),
            "completionMode": "Indexed",
            "completions": work.pods,
            "parallelism": work.pods,
            **work.retries,
            # A pod that still runs on the far side must not get a twin: wait until it has really ended.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": _exits(trainer.EXIT_CONFIG)},
                    {"action": "Ignore", "onExitCodes": _exits(trainer.EXIT_LEFT)},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": _pod_template(run, work, defaults),
        },
    }


def _exits(code: int) -> dict[str, Any]:
    return {"containerName": "trainer", "operator": "In", "values": [code]}


def _pod_template(run: Run, work: Work, defaults: Defaults) -> dict[str, Any]:
    template: dict[str, Any] = {
        "metadata": {
            "labels": _all_labels(run, work.labels),
            "annotations": {f"{GROUP}/config-sha256": hashlib.sha256(work.text.encode()).hexdigest()[:16]},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "fsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "nodeTaintsPolicy": "Honor",
                    "labelSelector": {"matchLabels": {RUN_LABEL: run.name, **work.labels}},
                }
            ],
            "containers": [merge(_container(run, work, defaults), work.container)],
            "volumes": [
                {"name": "config", "configMap": {"name": work.config_map}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "cache", "emptyDir": {}},
            ],
        },
    }
    template = merge(template, work.pod)
    if run.spec.scheduling.priority_class_name is not None:
        template["spec"]["priorityClassName"] = run.spec.scheduling.priority_class_name
    return merge(merge(template, defaults.template), copy.deepcopy(run.spec.trainer.template))


def _container(run: Run, work: Work, defaults: Defaults) -> dict[str, Any]:
    return {
        "name": "trainer",
        "image": run.spec.trainer.image or defaults.image,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": work.config_path, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": "/cache"},
        ],
    }
