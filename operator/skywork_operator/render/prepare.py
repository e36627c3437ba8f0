"""Manifests of a source's preparation: its ConfigMap, and one Indexed Job for each reading of the inputs."""

import hashlib
from typing import Any, Literal

from skywork_operator.render.config import preparation, prepared_by_name
from skywork_operator.render.pods import PHASE_LABEL, PREPARE_LABEL, Defaults, Work, config_map, indexed_job
from skywork_operator.world import Run

Reading = Literal["scan", "write"]
_CONFIG_FOLDER = "/etc/skywork/prepare"
_GPU = "nvidia.com/gpu"
# Pods are named <job>-<index>-xxxxx with an index of up to four digits, and <job>-<index> is their host name.
_LONGEST_JOB_NAME = 51
_LONGEST_NAME = _LONGEST_JOB_NAME - len("-write")
_RETRIES_PER_PART = 5


def config_name(run: str, source: str) -> str:
    """Name of the ConfigMap of a source's preparation; a long one ends with a hash of what was cut off."""
    name = f"{run}-prepare-{source}"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9].rstrip('-')}-{digest}"


def job_name(run: str, source: str, reading: Reading) -> str:
    """Name of the Job that reads a source's inputs, to find what occurs again or to write shards."""
    return f"{config_name(run, source)}-{reading}"


def prepare_config_map(run: Run, source: str) -> dict[str, Any]:
    """ConfigMap that all Jobs of a source's preparation read."""
    return config_map(run, config_name(run.name, source), {PREPARE_LABEL: source}, {"prepare.json": _text(run, source)})


def prepare_job(run: Run, source: str, reading: Reading, defaults: Defaults) -> dict[str, Any]:
    """One Indexed Job, a pod for each part of the source; raises ValueError naming a wrong field."""
    prepare = prepared_by_name(run.spec)[source].prepare
    assert prepare is not None
    work = Work(
        name=job_name(run.name, source, reading),
        labels={PREPARE_LABEL: source, PHASE_LABEL: reading},
        pods=prepare.pods,
        config_map=config_name(run.name, source),
        config_path=_CONFIG_FOLDER,
        text=_text(run, source),
        # Every part has tries of its own: a thousand pods must not share the bad luck of a few.
        retries={"backoffLimitPerIndex": _RETRIES_PER_PART, "maxFailedIndexes": 0},
        container={
            # Templates may wrap or replace the command, so it is the same for all pods: what to do is in the arguments.
            "command": ["skywork"],
            # Kubernetes expands $(NAME) itself; it puts JOB_COMPLETION_INDEX into the pods of every Indexed Job.
            "args": [
                "data", "prepare", "--config", f"{_CONFIG_FOLDER}/prepare.json", "--phase", reading,
                "--part", f"$(JOB_COMPLETION_INDEX)/{prepare.pods}", "--workers", str(prepare.workers_per_pod),
            ],
        },
    )  # fmt: skip
    return _without_gpus(indexed_job(run, work, defaults))


def _text(run: Run, source: str) -> str:
    return preparation(run, source).model_dump_json(indent=1)


def _without_gpus(job: dict[str, Any]) -> dict[str, Any]:
    """The Job without the GPUs that a template meant for training may ask for: preparing text needs none."""
    for container in job["spec"]["template"]["spec"]["containers"]:
        for amounts in container.get("resources", {}).values():
            if isinstance(amounts, dict):
                amounts.pop(_GPU, None)
    return job
