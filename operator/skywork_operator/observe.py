"""observe(run) -> World: live reads of the API server and of the agents, turned into plain data."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from skywork_trainer.config import AgentStatus

from skywork_operator.addresses import agent_url
from skywork_operator.cluster import Cluster
from skywork_operator.parsing import (
    is_complete,
    owner,
    parse_job,
    parse_node,
    parse_pod,
    parse_prepare_job,
    parse_words,
)
from skywork_operator.policies.blockage import job_blockage, mount_blockage, waits_for_volumes
from skywork_operator.render import PHASE_LABEL, PREPARE_LABEL, RUN_LABEL, STAGE_LABEL, gang_of
from skywork_operator.world import Node, Pod, PrepareJob, Run, World

_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_DOUBTFUL_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=0.3)
"""For agents on nodes that are not ready: whoever is well there answers at once, and the others are waited for."""


async def observe(cluster: Cluster, agents: aiohttp.ClientSession, run: Run, nodes: Mapping[str, Node] | None) -> World:
    """Read the run's Jobs, the pods of its newest stage with their agents' words, and those of its preparations."""
    found = await cluster.list_jobs(run.namespace, {RUN_LABEL: run.name})
    owned = [job for job in found if owner(job) == run.uid]
    staged = {job["metadata"]["labels"][STAGE_LABEL]: job for job in owned if STAGE_LABEL in job["metadata"]["labels"]}
    jobs = {stage: parse_job(body) for stage, body in staged.items()}
    preparing = [job for job in owned if PREPARE_LABEL in job["metadata"]["labels"]]
    prepare_jobs = tuple([await _prepare_job(cluster, run, job) for job in preparing])
    order = [stage.name for stage in run.spec.stages if stage.name in jobs]
    gang = gang_of(run)
    # Asked only while a stage may start: Jobs that are there had their PodGroup before them.
    waits = gang is not None and len(order) < len(run.spec.stages)
    missing = gang is not None and waits and not await cluster.serves(gang.api_version)
    if not order:
        return World(run=run, jobs=jobs, prepare_jobs=prepare_jobs, nodes=nodes, gang_missing=missing)
    newest = jobs[order[-1]]
    bodies = await cluster.list_pods(run.namespace, {RUN_LABEL: run.name, STAGE_LABEL: newest.stage})
    mine = [body for body in bodies if owner(body) == newest.uid]
    if not newest.complete and not newest.suspended:
        jobs[newest.stage] = parse_job(staged[newest.stage], blocked=await _why_blocked(cluster, run, newest.uid, mine))
    if nodes is not None:
        nodes = await _nodes_of(cluster, mine, nodes)
    pods = await asyncio.gather(*(_pod(agents, body, nodes) for body in mine))
    ordered = tuple(sorted(pods, key=lambda p: (p.index, p.name)))
    return World(run=run, jobs=jobs, prepare_jobs=prepare_jobs, pods=ordered, nodes=nodes, gang_missing=missing)


async def _prepare_job(cluster: Cluster, run: Run, body: dict[str, Any]) -> PrepareJob:
    pods: list[dict[str, Any]] = []
    # The pods of a complete Job have nothing more to say, and a source may have a thousand of them.
    if not is_complete(body):
        wanted = {key: body["metadata"]["labels"][key] for key in (RUN_LABEL, PREPARE_LABEL, PHASE_LABEL)}
        found = await cluster.list_pods(run.namespace, wanted)
        pods = [pod for pod in found if owner(pod) == body["metadata"]["uid"]]
    return parse_prepare_job(body, pods)


async def _why_blocked(cluster: Cluster, run: Run, job_uid: str, pods: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Why a Job makes no pods, or why one waits for its volumes: only Events tell."""
    if not pods:
        return job_blockage(await cluster.list_events(run.namespace, job_uid))
    waiting = next((pod for pod in pods if waits_for_volumes(pod)), None)
    if waiting is None:
        return None
    return mount_blockage(await cluster.list_events(run.namespace, waiting["metadata"]["uid"]))


async def _nodes_of(cluster: Cluster, pods: list[dict[str, Any]], known: Mapping[str, Node]) -> Mapping[str, Node]:
    """The nodes that pods are on. Watches have no common order: one not heard of yet is asked for, not gone."""
    names = {name for pod in pods if (name := pod.get("spec", {}).get("nodeName"))}
    found = {name: known[name] for name in names if name in known}
    for name in names - found.keys():
        body = await cluster.get_node(name)
        if body is not None:
            found[name] = parse_node(body)
    return found


async def _pod(agents: aiohttp.ClientSession, body: dict[str, Any], nodes: Mapping[str, Node] | None) -> Pod:
    status = body.get("status", {})
    ip, phase = status.get("podIP", ""), status.get("phase", "Pending")
    node = (nodes or {}).get(body.get("spec", {}).get("nodeName", ""))
    patience = _AGENT_TIMEOUT if node is None or node.ready else _DOUBTFUL_AGENT_TIMEOUT
    return parse_pod(body, await _ask(agents, ip, patience) if phase == "Running" and ip else None)


async def _ask(agents: aiohttp.ClientSession, ip: str, patience: aiohttp.ClientTimeout) -> AgentStatus | None:
    try:
        async with agents.get(agent_url(ip, "/status"), timeout=patience) as response:
            return parse_words(AgentStatus, json.dumps(await response.json()))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
