"""The manifest of a run, as `kubectl apply` takes it, read without an API server."""

import math
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from skywork_operator.api import GROUP, KIND, VERSION
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec, Trainer
from skywork_operator.policies.report import sentence
from skywork_operator.world import Run


def choose(text: str, name: str | None = None) -> dict[str, Any]:
    """Return the SkyworkRun among the documents of `text`, by name where there are several; raises ValueError."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    except yaml.YAMLError as error:
        raise ValueError(f"the manifest is no YAML: {error}") from error
    runs = [document for document in documents if document.get("kind") == KIND]
    names = [str((run.get("metadata") or {}).get("name", "")) for run in runs]
    if not runs:
        kinds = sorted({str(document.get("kind")) for document in documents})
        raise ValueError(f"the manifest holds no {KIND}, but {', '.join(kinds) or 'nothing'}")
    if name is not None and name not in names:
        raise ValueError(f"no {KIND} is named {name!r}; there are {', '.join(names)}")
    if name is None and len(runs) > 1:
        raise ValueError(f"the manifest holds {len(runs)} runs ({', '.join(names)}): choose one with --name")
    chosen = runs[names.index(name) if name is not None else 0]
    if chosen.get("apiVersion") != f"{GROUP}/{VERSION}":
        raise ValueError(f"apiVersion is {chosen.get('apiVersion')!r}; this version reads {GROUP}/{VERSION}")
    if not names[runs.index(chosen)]:
        raise ValueError("metadata.name is missing")
    return chosen


def parse(body: Mapping[str, Any], *, nodes: int, gpus_per_node: int, now: float) -> Run:
    """The run on exactly the `nodes` there are; raises ValueError that names each wrong field.

    Its creation time, which begins the names of its checkpoints, is `now`: what is stored from here on comes after what
    an earlier run stored below the same address, here or in a cluster. Whole seconds, rounded up for the same reason.
    """
    metadata = body["metadata"]
    try:
        spec = SkyworkRunSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        raise ValueError(f"spec: {sentence(error)}") from error
    wanted = spec.trainer.nodes
    here = wanted.model_copy(update={"min": min(wanted.min, nodes), "max": nodes})
    trainer = spec.trainer.model_copy(update={"nodes": here, "gpus_per_node": gpus_per_node})
    return Run(
        name=metadata["name"],
        namespace=metadata.get("namespace", "default"),
        uid="standalone",
        generation=1,
        created_seconds=math.ceil(now),
        spec=spec.model_copy(update={"trainer": trainer}),
        status=SkyworkRunStatus(),
    )


def environment(trainer: Trainer) -> tuple[dict[str, str], list[str]]:
    """What the pod template sets for the trainer's container, and the names of what only a cluster could look up."""
    found: dict[str, str] = {}
    elsewhere: list[str] = []
    for container in (trainer.template.get("spec") or {}).get("containers") or []:
        if container.get("name") != "trainer":
            continue
        for entry in container.get("env") or []:
            if "value" in entry:
                found[entry["name"]] = str(entry["value"])
            elif "secretKeyRef" in (entry.get("valueFrom") or {}):
                elsewhere.append(entry["name"])
        for entry in container.get("envFrom") or []:
            elsewhere += [
                f"all of {kind[:-3]} {ref.get('name')}" for kind, ref in entry.items() if kind.endswith("Ref")
            ]
    return found, elsewhere
