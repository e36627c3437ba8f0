"""The only code that writes to the cluster: carries out one Plan, in an order that survives dying in between."""

import logging
from typing import Any

from skywork_trainer.config import MEMBERSHIP_ANNOTATION

from skywork_operator.api import GROUP, KIND, VERSION
from skywork_operator.cluster import ApiError, Cluster
from skywork_operator.render import MANAGER
from skywork_operator.times import timestamp
from skywork_operator.world import Event, Plan

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
    for pod, word in plan.memberships:
        annotations = {MEMBERSHIP_ANNOTATION: word.model_dump_json()}
        await cluster.annotate_pod(namespace, pod.name, pod.uid, annotations)
    for event in plan.events:
        await _post(cluster, metadata, event, now)


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
