"""observe(run) -> World: live reads of the API server and of the agents, turned into plain data."""

import asyncio
import json
import logging
from typing import Any, TypeVar

import aiohttp
from pydantic import ValidationError
from skywork_trainer.config import AGENT_PORT, MEMBERSHIP_ANNOTATION, AgentStatus, Failure, Membership

from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec
from skywork_operator.cluster import Cluster
from skywork_operator.policies.blockage import blockage
from skywork_operator.render import PHASE_LABEL, PREPARE_LABEL, RUN_LABEL, STAGE_LABEL
from skywork_operator.times import seconds
from skywork_operator.world import Job, Pod, PrepareJob, Run, World

_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
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
    )


async def observe(cluster: Cluster, agents: aiohttp.ClientSession, run: Run) -> World:
    """Read the run's Jobs, the pods of its newest stage with their agents' words, and those of its preparations."""
    found = await cluster.list_jobs(run.namespace, {RUN_LABEL: run.name})
    owned = [job for job in found if _owner(job) == run.uid]
    jobs = {
        job["metadata"]["labels"][STAGE_LABEL]: _job(job) for job in owned if STAGE_LABEL in job["metadata"]["labels"]
    }
    preparing = [job for job in owned if PREPARE_LABEL in job["metadata"]["labels"]]
    prepare_jobs = tuple([await _prepare_job(cluster, run, job) for job in preparing])
    order = [stage.name for stage in run.spec.stages if stage.name in jobs]
    if not order:
        return World(run=run, jobs=jobs, prepare_jobs=prepare_jobs)
    newest = jobs[order[-1]]
    bodies = await cluster.list_pods(run.namespace, {RUN_LABEL: run.name, STAGE_LABEL: newest.stage})
    mine = [body for body in bodies if _owner(body) == newest.uid]
    pods = await asyncio.gather(*(_pod(agents, body) for body in mine))
    ordered = tuple(sorted(pods, key=lambda p: (p.index, p.name)))
    return World(run=run, jobs=jobs, prepare_jobs=prepare_jobs, pods=ordered)


def _owner(body: dict[str, Any]) -> str | None:
    owners = body["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def _label(body: dict[str, Any], label: str) -> str:
    value: str = body["metadata"]["labels"].get(label, "")
    return value


def _job(body: dict[str, Any]) -> Job:
    complete, failed = _end(body)
    return Job(
        stage=body["metadata"]["labels"][STAGE_LABEL],
        uid=body["metadata"]["uid"],
        complete=complete,
        failed=failed,
        suspended=bool(body["spec"].get("suspend")),
    )


def _end(body: dict[str, Any]) -> tuple[bool, str | None]:
    """Whether the Job is complete, and the message it failed with."""
    conditions = {c["type"]: c for c in body.get("status", {}).get("conditions") or [] if c["status"] == "True"}
    failed = conditions.get("Failed") or conditions.get("FailureTarget")
    return "Complete" in conditions, failed.get("message", failed["reason"]) if failed else None


async def _prepare_job(cluster: Cluster, run: Run, body: dict[str, Any]) -> PrepareJob:
    labels = body["metadata"]["labels"]
    complete, failed = _end(body)
    pods: list[dict[str, Any]] = []
    # The pods of a complete Job have nothing more to say, and a source may have a thousand of them.
    if not complete:
        wanted = {key: labels[key] for key in (RUN_LABEL, PREPARE_LABEL, PHASE_LABEL)}
        found = await cluster.list_pods(run.namespace, wanted)
        pods = [pod for pod in found if _owner(pod) == body["metadata"]["uid"]]
    said = [_parse(Failure, _termination_message(pod.get("status", {}))) for pod in pods if _has_failed(pod)]
    return PrepareJob(
        source=labels[PREPARE_LABEL],
        reading=labels[PHASE_LABEL],
        name=body["metadata"]["name"],
        parts=body["spec"]["completions"],
        succeeded=body.get("status", {}).get("succeeded", 0),
        complete=complete,
        failed=failed,
        suspended=bool(body["spec"].get("suspend")),
        failures=tuple(failure for failure in said if failure is not None),
        blocked=next((why for pod in pods if (why := blockage(pod)) is not None), None),
    )


def _has_failed(pod: dict[str, Any]) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Failed")


async def _pod(agents: aiohttp.ClientSession, body: dict[str, Any]) -> Pod:
    metadata, status = body["metadata"], body.get("status", {})
    annotations = metadata.get("annotations") or {}
    ip, phase = status.get("podIP", ""), status.get("phase", "Pending")
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=int(annotations.get(_INDEX_ANNOTATION, "0")),
        ip=ip,
        phase=phase,
        ready=conditions.get("Ready") == "True",
        terminating="deletionTimestamp" in metadata,
        membership=_parse(Membership, annotations.get(MEMBERSHIP_ANNOTATION)),
        agent=await _ask(agents, ip) if phase == "Running" and ip else None,
        last_words=_parse(AgentStatus, _termination_message(status)),
        blocked=blockage(body),
    )


def _termination_message(status: dict[str, Any]) -> str | None:
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if container["name"] == "trainer" and ended:
            message: str | None = ended.get("message")
            return message
    return None


def _parse(model: type[_T], text: str | None) -> _T | None:
    """What a pod carries, or None: a word that cannot be read is no word, and must not stop the run's other pods."""
    if not text:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError:
        _log.warning("unreadable %s: %.200s", model.__name__, text)
        return None


async def _ask(agents: aiohttp.ClientSession, ip: str) -> AgentStatus | None:
    try:
        async with agents.get(f"http://{ip}:{AGENT_PORT}/status", timeout=_AGENT_TIMEOUT) as response:
            return _parse(AgentStatus, json.dumps(await response.json()))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
