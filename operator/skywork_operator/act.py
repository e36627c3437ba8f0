"""The only code that writes to the cluster: carries out one Plan, in an order that survives dying in between."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from skywork_trainer.config import MEMBERSHIP_ANNOTATION, Membership

from skywork_operator.api import GROUP, KIND, VERSION
from skywork_operator.cluster import ApiError, Cluster
from skywork_operator.render import MANAGER, PLACEMENT_GATE
from skywork_operator.times import timestamp
from skywork_operator.world import Event, Plan, Pod

CONCURRENT_CALLS = 32
_log = logging.getLogger(__name__)


async def act(cluster: Cluster, body: dict[str, Any], plan: Plan, now: float) -> None:
    """Write what `plan` wants for the run read as `body`; raises ApiError, after which the pass is simply repeated."""
    metadata = body["metadata"]
    namespace = metadata["namespace"]
    status = plan.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    # The status goes first: its counters and generation number must not fall behind what the pods are told, or a
    # pass repeated after a crash would count one failure twice or hand out one generation number twice.
    if status != body.get("status"):
        await cluster.write_status(body, status)
    for manifest in plan.objects:
        await cluster.apply(manifest)
    for job in plan.suspend:
        await cluster.suspend_job(namespace, job)
    for job in plan.delete_jobs:
        await cluster.delete_job(namespace, job)
    for job, pods in plan.resize:
        await cluster.resize_job(namespace, job, pods)
    # What training waits for comes first; what makes room for later pods may wait for that.
    sent = {"sent": round(now, 3)}
    await _all(_annotate(cluster, namespace, pod, word.model_copy(update=sent)) for pod, word in plan.memberships)
    await _all(cluster.untrack_pod(namespace, pod.name, pod.uid) for pod in (*plan.untrack, *plan.delete_pods))
    await _all(cluster.forget_pod(namespace, pod.name, pod.uid) for pod in plan.forget)
    await _all(
        cluster.admit_pod(namespace, pod.name, pod.uid, gate=PLACEMENT_GATE, avoid=avoid) for pod, avoid in plan.admit
    )
    await _all(cluster.delete_pod(namespace, pod.name, pod.uid) for pod in plan.delete_pods)
    await _all(_post(cluster, metadata, event, now) for event in plan.events)
    if plan.delete_run:
        await cluster.delete_run(namespace, metadata["name"], metadata["uid"])


async def _annotate(cluster: Cluster, namespace: str, pod: Pod, word: Membership) -> None:
    text = word.model_dump_json(exclude_defaults=True)
    await cluster.annotate_pod(namespace, pod.name, pod.uid, {MEMBERSHIP_ANNOTATION: text})


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Make the calls, some at a time; all are made even if some fail, and then the first error is raised."""
    limit = asyncio.Semaphore(CONCURRENT_CALLS)

    async def one(call: Coroutine[Any, Any, None]) -> None:
        async with limit:
            await call

    results = await asyncio.gather(*(one(call) for call in calls), return_exceptions=True)
    for error in results:
        if isinstance(error, BaseException):
            raise error


async def _post(cluster: Cluster, metadata: dict[str, Any], event: Event, now: float) -> None:
    body = {
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": event.kind,
        "reason": event.reason,
        "message": event.message[:1000],
        "source": {"component": MANAGER},
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }
    try:
        await cluster.create_event(metadata["namespace"], body)
    except ApiError as error:
        # An Event is a courtesy: the transition itself is in the status already.
        _log.warning("could not post event %s: %s", event.reason, error)
