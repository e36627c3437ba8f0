"""Manifests of a stage: the trainer's configuration, the ConfigMap that carries it, and the Indexed Job."""

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

from skywork_trainer import config as trainer

from skywork_operator.api import GROUP, KIND, VERSION
from skywork_operator.api.quantities import parse_duration_seconds, parse_quantity
from skywork_operator.api.types import LearningRate, Share, SkyworkRunSpec, Stage
from skywork_operator.world import Run

RUN_LABEL = f"{GROUP}/run"
STAGE_LABEL = f"{GROUP}/stage"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "skywork-operator"
GRACE_SECONDS = 30
_INT32_MAX = 2147483647


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the cluster's administrator gives every run: the image, and a pod template under each run's own."""

    image: str
    template: dict[str, Any] = field(default_factory=dict)


def run_config(run: Run, stage: str) -> trainer.RunConfig:
    """The configuration of one stage's trainer, which knows the stages up to its own; raises ValueError naming a field.

    Later stages stay out, so that appending one changes nothing that is running.
    """
    spec = run.spec
    length = spec.batch.sequence_length
    names = [s.name for s in spec.stages]
    return trainer.RunConfig(
        run=run.name,
        namespace=run.namespace,
        incarnation=run.created_seconds,
        stage=stage,
        model=_model(spec),
        tokenizer_uri=spec.tokenizer.uri,
        engine=trainer.Engine(
            zero_stage=spec.engine.zero_stage, micro_batch_sequences=spec.engine.micro_batch_sequences
        ),
        optimizer=trainer.Optimizer(
            beta1=float(spec.optimizer.betas[0]),
            beta2=float(spec.optimizer.betas[1]),
            epsilon=float(spec.optimizer.epsilon),
            weight_decay=float(spec.optimizer.weight_decay),
            gradient_clipping=float(spec.optimizer.gradient_clipping),
        ),
        sequence_length=length,
        global_batch_sequences=parse_quantity(spec.batch.global_tokens) // length,
        sources=tuple(trainer.Source(name=s.name, uri=s.uri) for s in spec.sources),
        stages=tuple(_stage(s) for s in spec.stages[: names.index(stage) + 1]),
        validation=trainer.Validation(
            every_tokens=parse_quantity(spec.validation.every_tokens),
            windows=spec.validation.windows,
            domains=tuple(trainer.Source(name=d.name, uri=d.uri) for d in spec.validation.domains),
        ),
        checkpoints=trainer.Checkpoints(
            uri=spec.checkpoints.uri,
            every_seconds=parse_duration_seconds(spec.checkpoints.every),
            keep_last=spec.checkpoints.keep_last,
        ),
        seed=spec.seed,
    )


def _model(spec: SkyworkRunSpec) -> trainer.Model:
    base = trainer.PRESETS[spec.model.preset].model_dump() if spec.model.preset else {}
    given = spec.model.model_dump(exclude={"preset"}, exclude_none=True)
    if "heads" in given and "kv_heads" not in given:
        given["kv_heads"] = given["heads"]
    return trainer.Model(**(base | given))


def _stage(stage: Stage) -> trainer.Stage:
    return trainer.Stage(
        name=stage.name,
        tokens=parse_quantity(stage.tokens),
        learning_rate=_learning_rate(stage.learning_rate),
        mixture=tuple(trainer.MixtureEntry(source=entry.source, share=_share(entry.share)) for entry in stage.mixture),
    )


def _learning_rate(rate: LearningRate) -> trainer.LearningRate:
    return trainer.LearningRate(
        schedule=trainer.Schedule(rate.schedule),
        peak=float(rate.peak) if rate.peak is not None else None,
        final=float(rate.final) if rate.final is not None else None,
        warmup_tokens=parse_quantity(rate.warmup_tokens) if rate.warmup_tokens else 0,
    )


def _share(share: Share | None) -> trainer.Share | None:
    if share is None:
        return None
    start = float(share.from_)
    end = float(share.to) if share.to is not None and share.shape != "Constant" else start
    return trainer.Share(start=start, end=end, shape=trainer.Shape(share.shape))


def object_name(run: str, stage: str) -> str:
    """Name of a stage's Job and ConfigMap."""
    return f"{run}-{stage}"


def stage_objects(run: Run, stage: str, defaults: Defaults) -> list[dict[str, Any]]:
    """ConfigMap and Job of a stage, whole, for server-side apply; raises ValueError naming a wrong field."""
    text = run_config(run, stage).model_dump_json(indent=1)
    return [_config_map(run, stage, text), _job(run, stage, text, defaults)]


def _metadata(run: Run, stage: str) -> dict[str, Any]:
    return {
        "name": object_name(run.name, stage),
        "namespace": run.namespace,
        "labels": _labels(run, stage),
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


def _labels(run: Run, stage: str) -> dict[str, str]:
    return {
        RUN_LABEL: run.name,
        STAGE_LABEL: stage,
        MANAGED_LABEL: MANAGER,
        "app.kubernetes.io/name": "skywork-trainer",
        "app.kubernetes.io/instance": run.name,
    }


def _config_map(run: Run, stage: str, text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(run, stage),
        "immutable": True,
        "data": {"run.json": text},
    }


def _job(run: Run, stage: str, text: str, defaults: Defaults) -> dict[str, Any]:
    nodes = run.spec.trainer.nodes.max
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(run, stage),
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            # The budget of restarts is the operator's, counted by progress; the Job must never give up by itself.
            "backoffLimit": _INT32_MAX,
            # A pod that still runs on the far side must not get a twin: wait until it has really ended.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "trainer",
                            "operator": "In",
                            "values": [trainer.EXIT_CONFIG],
                        },
                    },
                    {
                        "action": "Ignore",
                        "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [trainer.EXIT_LEFT]},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": _pod_template(run, stage, text, defaults),
        },
    }


def _pod_template(run: Run, stage: str, text: str, defaults: Defaults) -> dict[str, Any]:
    workers = max(run.spec.trainer.gpus_per_node, 1)
    template: dict[str, Any] = {
        "metadata": {
            "labels": _labels(run, stage),
            "annotations": {
                f"{GROUP}/config-sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(trainer.AGENT_PORT),
            },
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
                    "labelSelector": {"matchLabels": {RUN_LABEL: run.name, STAGE_LABEL: stage}},
                }
            ],
            "containers": [_container(run, workers, defaults)],
            "volumes": [
                {"name": "config", "configMap": {"name": object_name(run.name, stage)}},
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
                {"name": "tmp", "emptyDir": {}},
                {"name": "cache", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }
    return merge(merge(template, defaults.template), run.spec.trainer.template)


def _container(run: Run, workers: int, defaults: Defaults) -> dict[str, Any]:
    gpus = run.spec.trainer.gpus_per_node
    port = trainer.AGENT_PORT
    container: dict[str, Any] = {
        "name": "trainer",
        "image": run.spec.trainer.image or defaults.image,
        "command": ["skywork", "agent"],
        "args": ["--workers", str(workers), "--state-dir", "/tmp/skywork", "--cache-dir", "/cache"],
        "env": [
            {"name": "HOME", "value": "/tmp"},
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
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/skywork/config", "readOnly": True},
            {"name": "pod", "mountPath": "/etc/skywork/pod", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": "/cache"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    return container


# Merge keys of the lists that a pod template patch may name, as in Kubernetes' strategic merge patch.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
}


def merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`base` with `patch` over it: objects merge, named lists merge by their key, other lists and values replace."""
    out = copy.deepcopy(base)
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        elif isinstance(value, list) and isinstance(out.get(key), list) and key in _MERGE_KEYS:
            out[key] = _merge_list(out[key], value, _MERGE_KEYS[key])
        else:
            out[key] = copy.deepcopy(value)
    return out


def _merge_list(base: list[Any], patch: list[Any], name: str) -> list[Any]:
    merged = {item[name]: item for item in base}
    for item in patch:
        merged[item[name]] = merge(merged[item[name]], item) if item[name] in merged else item
    return list(merged.values())
