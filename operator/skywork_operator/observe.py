"""What one pass sees of its run: Jobs and pods as they are known or read, and the words of agents, as plain data."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiohttp
from skywork_trainer.config import AgentStatus

from skywork_operator.addresses import agent_url
from skywork_operator.cluster import Cluster, Listed
from skywork_operator.mirror import Mirror
from skywork_operator.parsing import (
    SeenPod,
    is_complete,
    owner,
    parse_job,
    parse_node,
    parse_prepare_job,
    parse_words,
    see_job,
    see_pod,
)
from skywork_operator.policies.blockage import job_blockage, mount_blockage
from skywork_operator.render import PHASE_LABEL, PREPARE_LABEL, RUN_LABEL, STAGE_LABEL, gangs_of
from skywork_operator.times import seconds
from skywork_operator.world import Key, Node, Pod, PrepareJob, Run, World

_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_DOUBTFUL_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=0.3)
"""For agents on nodes that are not ready: whoever is well there answers at once, and the others are waited for."""
_SERVED_SECONDS = 10.0
"""How long it is known whether a kind of PodGroups is installed: every run that starts asks."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sight:
    """What one look at a run saw."""

    world: World
    certain: bool
    """Whether all of it was read just now, and nothing taken from what watches told."""

    @property
    def answers(self) -> dict[str, AgentStatus | None]:
        """What the agents that were asked have said, by UID of their pods; None where one did not answer."""
        return {pod.uid: pod.agent for pod in self.world.pods if _can_be_asked(pod)}


class Observer:
    """Looks at runs; holds the mirror of their Jobs and pods, which `hear` keeps up between two lists."""

    def __init__(self, cluster: Cluster, agents: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        self._cluster, self._agents = cluster, agents
        self._jobs: Mirror[dict[str, Any]] = Mirror(see_job, clock)
        self._pods: Mirror[SeenPod] = Mirror(see_pod, clock)
        self._clock = clock
        self._served: dict[str, tuple[float, bool]] = {}
        """API versions of PodGroups: when each was asked for, and whether it is there."""
        cluster.wrote = self.hear

    def hear(self, body: Mapping[str, Any], *, gone: bool = False) -> None:
        """Take over a Job or a pod: out of a watch's event, or as it is after a write of ours."""
        metadata = body["metadata"]
        labels = metadata.get("labels") or {}
        if RUN_LABEL not in labels:
            return
        key = metadata["namespace"], labels[RUN_LABEL]
        if body.get("kind") == "Job":
            self._jobs.hear(key, body, gone=gone)
        elif STAGE_LABEL in labels:
            self._pods.hear(key, body, gone=gone)

    def forget(self, key: Key) -> None:
        """Read everything of a run when it is looked at next."""
        self._jobs.forget(key)
        self._pods.forget(key)

    async def look(
        self,
        run: Run,
        nodes: Mapping[str, Node] | None,
        *,
        within_seconds: float,
        patience_seconds: float,
        answers: Mapping[str, AgentStatus | None] | None = None,
    ) -> Sight:
        """The run's Jobs, the pods of its newest stage with their agents' words, and those of its preparations.

        Lists younger than `within_seconds` serve again. Why pods are not made is asked once they are that late.
        Agents that are among `answers` are not asked again.
        """
        key = run.namespace, run.name
        found, live = await _listed(
            self._jobs, key, within_seconds, lambda: self._cluster.list_jobs(run.namespace, {RUN_LABEL: run.name})
        )
        owned = [job for job in found if owner(job) == run.uid]
        staged = {
            job["metadata"]["labels"][STAGE_LABEL]: job for job in owned if STAGE_LABEL in job["metadata"]["labels"]
        }
        jobs = {stage: parse_job(body) for stage, body in staged.items()}
        preparing = [job for job in owned if PREPARE_LABEL in job["metadata"]["labels"]]
        prepare_jobs = tuple([await self._prepare_job(run, job) for job in preparing])
        order = [stage.name for stage in run.spec.stages if stage.name in jobs]
        # Asked only while a stage may start: Jobs that are there had their PodGroup before them.
        groups = await self._pod_groups(run) if len(order) < len(run.spec.stages) else None
        world = World(run=run, jobs=jobs, prepare_jobs=prepare_jobs, nodes=nodes, pod_groups=groups)
        if not order:
            return Sight(world, live)
        newest = jobs[order[-1]]
        labels = {RUN_LABEL: run.name, STAGE_LABEL: newest.stage}
        seen, live_pods = await _listed(
            self._pods, key, within_seconds, lambda: self._cluster.list_pods(run.namespace, labels)
        )
        mine = [pod for pod in seen if pod.owner == newest.uid]
        if not newest.complete and not newest.suspended:
            blocked = await self._why_blocked(run, staged[newest.stage], mine, patience_seconds)
            jobs[newest.stage] = replace(newest, blocked=blocked)
        if nodes is not None:
            nodes = await self._nodes_of([pod.pod for pod in mine], nodes)
        pods = await self._asked([pod.pod for pod in mine], nodes, answers or {})
        return Sight(replace(world, jobs=jobs, pods=pods, nodes=nodes), live and live_pods)

    async def _pod_groups(self, run: Run) -> str | None:
        """The first version of the PodGroups that the run can use and the cluster serves."""
        for gang in gangs_of(run):
            asked, served = self._served.get(gang.api_version, (-_SERVED_SECONDS, False))
            if self._clock() - asked >= _SERVED_SECONDS:
                asked, served = self._clock(), await self._cluster.serves(gang.api_version, "podgroups")
                self._served[gang.api_version] = asked, served
            if served:
                return gang.api_version
        return None

    async def _prepare_job(self, run: Run, body: dict[str, Any]) -> PrepareJob:
        pods: list[dict[str, Any]] = []
        # The pods of a complete Job have nothing more to say, and a source may have a thousand of them.
        if not is_complete(body):
            wanted = {key: body["metadata"]["labels"][key] for key in (RUN_LABEL, PREPARE_LABEL, PHASE_LABEL)}
            found = await self._cluster.list_pods(run.namespace, wanted)
            pods = [pod for pod in found.items if owner(pod) == body["metadata"]["uid"]]
        return parse_prepare_job(body, pods)

    async def _why_blocked(
        self, run: Run, job: dict[str, Any], pods: list[SeenPod], patience_seconds: float
    ) -> tuple[str, str] | None:
        """Why a Job makes no pods, or why one waits for its volumes: only Events tell.

        The API server reads all of a namespace's to find them: they are asked for where something is late.
        """
        late = time.time() - patience_seconds
        if not pods:
            if seconds(job["metadata"]["creationTimestamp"]) > late:
                return None
            return job_blockage(await self._cluster.list_events(run.namespace, job["metadata"]["uid"]))
        waiting = next((seen.pod for seen in pods if (seen.mounts_since or late + 1) <= late), None)
        return mount_blockage(await self._cluster.list_events(run.namespace, waiting.uid)) if waiting else None

    async def _nodes_of(self, pods: list[Pod], known: Mapping[str, Node]) -> Mapping[str, Node]:
        """The nodes that pods are on. Watches have no common order: one not heard of yet is asked for, not gone."""
        names = {pod.node for pod in pods if pod.node}
        found = {name: known[name] for name in names if name in known}
        for name in names - found.keys():
            body = await self._cluster.get_node(name)
            if body is not None:
                found[name] = parse_node(body)
        return found

    async def _asked(
        self, pods: list[Pod], nodes: Mapping[str, Node] | None, answers: Mapping[str, AgentStatus | None]
    ) -> tuple[Pod, ...]:
        """The pods by their index, with what their agents say."""
        said = await asyncio.gather(*(self._ask(pod, nodes, answers) for pod in pods))
        joined = (replace(pod, agent=agent) for pod, agent in zip(pods, said, strict=True))
        return tuple(sorted(joined, key=lambda pod: (pod.index, pod.name)))

    async def _ask(
        self, pod: Pod, nodes: Mapping[str, Node] | None, answers: Mapping[str, AgentStatus | None]
    ) -> AgentStatus | None:
        if not _can_be_asked(pod):
            return None
        if pod.uid in answers:
            return answers[pod.uid]
        node = (nodes or {}).get(pod.node)
        patience = _AGENT_TIMEOUT if node is None or node.ready else _DOUBTFUL_AGENT_TIMEOUT
        try:
            async with self._agents.get(agent_url(pod.ip, "/status"), timeout=patience) as response:
                return parse_words(AgentStatus, json.dumps(await response.json()))
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None


def _can_be_asked(pod: Pod) -> bool:
    return pod.phase == "Running" and bool(pod.ip)


async def _listed(
    mirror: Mirror[_T], key: Key, within_seconds: float, read: Callable[[], Awaitable[Listed]]
) -> tuple[list[_T], bool]:
    """A run's objects, and whether they were read for that."""
    known = mirror.known(key, within_seconds=within_seconds)
    if known is not None:
        return known, False
    began = mirror.begin(key)
    listed = await read()
    return mirror.listed(key, listed.items, version=listed.version, began=began), True
