"""Manifests of a stage: the ConfigMap that carries the trainer's configuration, and the Indexed Job of its agents."""

from typing import Any

from skywork_trainer import config as trainer

from skywork_operator.render.config import run_config
from skywork_operator.render.gang import grouping
from skywork_operator.render.merging import merge
from skywork_operator.render.pods import PLACEMENT_GATE, STAGE_LABEL, Defaults, Work, config_map, indexed_job
from skywork_operator.world import Run

_INT32_MAX = 2147483647
_POD_PATCH: dict[str, Any] = {
    "metadata": {
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(trainer.AGENT_PORT)},
    },
    "spec": {
        "schedulingGates": [{"name": PLACEMENT_GATE}],
        "volumes": [
            {
                "name": "pod",
                "downwardAPI": {
                    "items": [
                        {
                            "path": "membership",
                            "fieldRef": {"fieldPath": f"metadata.annotations['{trainer.MEMBERSHIP_ANNOTATION}']"},
                        }
                    ]
                },
            },
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    },
}


def object_name(run: str, stage: str) -> str:
    """Name of a stage's Job and ConfigMap."""
    return f"{run}-{stage}"


def stage_objects(run: Run, stage: str, defaults: Defaults, pod_groups: str | None = None) -> list[dict[str, Any]]:
    """ConfigMap, PodGroup, and Job of a stage, whole, for server-side apply; the second where `pod_groups` is served.

    Raises ValueError naming a wrong field.
    """
    text = run_config(run, stage).model_dump_json(indent=1)
    name, labels = object_name(run.name, stage), {STAGE_LABEL: stage}
    groups, mark = grouping(run, name, labels, pod_groups)
    work = Work(
        name=name,
        labels=labels,
        pods=run.spec.trainer.nodes.max + run.spec.trainer.nodes.spares,
        config_map=name,
        config_path="/etc/skywork/config",
        text=text,
        # The budget of restarts is the operator's, counted by progress; the Job must never give up by itself.
        retries={"backoffLimit": _INT32_MAX},
        container=_agent(run.spec.trainer.gpus_per_node),
        pod=merge(_POD_PATCH, mark),
    )
    files = config_map(run, name, labels, {"run.json": text})
    return [files, *groups, indexed_job(run, work, defaults)]


def _agent(gpus: int) -> dict[str, Any]:
    port = trainer.AGENT_PORT
    container: dict[str, Any] = {
        "command": ["skywork"],
        "args": ["agent", "--workers", str(max(gpus, 1)), "--state-dir", "/tmp/skywork", "--cache-dir", "/cache"],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "ports": [{"name": "metrics", "containerPort": port}],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": port},
            "periodSeconds": 1,
            "failureThreshold": 1,
            "timeoutSeconds": 2,
        },
        "volumeMounts": [
            {"name": "pod", "mountPath": "/etc/skywork/pod", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    return container
