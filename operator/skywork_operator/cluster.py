"""The Kubernetes API as the operator uses it: plain dictionaries in, plain dictionaries out."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from kubernetes.aio import client, config

from skywork_operator.api import GROUP, PLURAL, VERSION
from skywork_operator.render import MANAGED_LABEL, MANAGER, TRACKING_FINALIZER
from skywork_operator.world import Key

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_TIMEOUT_SECONDS = 30
_ONLY_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PATHS = {
    "ConfigMap": ("/api/v1", "configmaps"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "PodGroup": ("", "podgroups"),
}


class ApiError(Exception):
    """The API server refused or could not answer; `status` is the HTTP code, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Listed(NamedTuple):
    """The answer to a list."""

    items: list[dict[str, Any]]
    version: int
    """Resource version of all of them together: what happened later has a greater one."""


class NotLeading(Exception):
    """Another operator may lead by now: nothing was written."""


class Cluster:
    """One connection to the API server; use as an async context manager."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each call that changes something of a run."""
        self.wrote: Callable[[dict[str, Any]], None] = lambda body: None
        """Told each Job or pod as the API server holds it after a change of ours."""

    @classmethod
    async def connect(cls) -> Self:
        """Connect with the pod's ServiceAccount, or with the kubeconfig where there is none."""
        if _TOKEN.exists():
            config.load_incluster_config()
        else:
            await config.load_kube_config()
        return cls(client.ApiClient())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    async def get_run(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The SkyworkRun, or None when it is gone."""
        try:
            return await self._call("GET", _run_path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_runs(self, namespace: str | None) -> list[Key]:
        """Namespace and name of all SkyworkRuns of one namespace, or of the cluster."""
        prefix = f"/apis/{GROUP}/{VERSION}"
        path = f"{prefix}/namespaces/{namespace}/{PLURAL}" if namespace else f"{prefix}/{PLURAL}"
        # No more than their metadata: thousands of runs at once are hundreds of MiB of Python's dictionaries.
        listed = await self._call("GET", path, accept=_ONLY_METADATA)
        return [(body["metadata"]["namespace"], body["metadata"]["name"]) for body in listed["items"]]

    async def list_jobs(self, namespace: str, labels: Mapping[str, str]) -> Listed:
        """Jobs with all of `labels`."""
        return await self._list(f"/apis/batch/v1/namespaces/{namespace}/jobs", labels)

    async def list_pods(self, namespace: str, labels: Mapping[str, str]) -> Listed:
        """Pods with all of `labels`."""
        return await self._list(f"/api/v1/namespaces/{namespace}/pods", labels)

    async def apply(self, manifest: dict[str, Any], *, guarded: bool = True) -> None:
        """Server-side apply of a whole manifest, taking over fields that others set."""
        prefix, plural = _PATHS[manifest["kind"]]
        prefix = prefix or f"/apis/{manifest['apiVersion']}"
        metadata = manifest["metadata"]
        path = f"{prefix}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        query = [("fieldManager", MANAGER), ("force", "true")]
        await self._call("PATCH", path, manifest, "application/apply-patch+yaml", query, guarded=guarded)

    async def serves(self, api_version: str, plural: str) -> bool:
        """Whether the API server knows a kind of that group and version."""
        try:
            known = await self._call("GET", f"/apis/{api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(kind["name"] == plural for kind in known["resources"])

    async def get_node(self, name: str) -> dict[str, Any] | None:
        """The node, or None when it is gone."""
        try:
            return await self._call("GET", f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_nodes(self) -> list[dict[str, Any]]:
        """All nodes."""
        return (await self._list("/api/v1/nodes")).items

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The Lease, or None while there is none."""
        try:
            return await self._call("GET", _lease_path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def put_lease(self, namespace: str, name: str, lease: dict[str, Any]) -> dict[str, Any]:
        """Create it, or replace it as it was read; ApiError 409 when another was faster."""
        metadata = {"name": name, "namespace": namespace, **lease["metadata"]}
        body = {**lease, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        if "resourceVersion" in metadata:
            return await self._call("PUT", _lease_path(namespace, name), body, query=_MANAGED, guarded=False)
        path = _lease_path(namespace, name).rpartition("/")[0]
        return await self._call("POST", path, body, query=_MANAGED, guarded=False)

    async def renew_heartbeat(self, namespace: str, now: float) -> None:
        """Write the Lease that the operator watches to know that its watches are alive."""
        renewed = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata = {"name": f"{MANAGER}-heartbeat", "namespace": namespace, "labels": {MANAGED_LABEL: MANAGER}}
        await self.apply(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": metadata,
                "spec": {"renewTime": renewed},
            },
            guarded=False,
        )

    async def list_events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        """Events about the object with `uid`."""
        query = [("fieldSelector", f"involvedObject.uid={uid}"), ("limit", "100")]
        listed = await self._call("GET", f"/api/v1/namespaces/{namespace}/events", query=query)
        items: list[dict[str, Any]] = listed["items"]
        return items

    async def resize_job(self, namespace: str, name: str, pods: int) -> None:
        """Change how many indexes an Indexed Job has; pods of the highest ones go first."""
        spec = {"completions": pods, "parallelism": pods}
        await self._patch(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", {"spec": spec})

    async def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job once its pods have ended, which are asked to; one that is gone already is fine."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"
        await self._delete(path, {"propagationPolicy": "Foreground"})

    async def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Ask exactly the pod with `uid` to end; one that is gone already is fine."""
        await self._delete(f"/api/v1/namespaces/{namespace}/pods/{name}", {"preconditions": {"uid": uid}})

    async def delete_run(self, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the SkyworkRun with `uid`."""
        await self._delete(_run_path(namespace, name), {"preconditions": {"uid": uid}})

    async def untrack_pod(self, namespace: str, name: str, uid: str) -> None:
        """Take the Job's finalizer off exactly the pod with `uid`, so that its Job does not count its end."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        try:
            pod = await self._call("GET", path)
        except ApiError as error:
            if error.status != 404:
                raise
            return
        metadata = pod["metadata"]
        if metadata["uid"] != uid:
            return
        left = [entry for entry in metadata.get("finalizers") or [] if entry != TRACKING_FINALIZER]
        body = {"uid": uid, "resourceVersion": metadata["resourceVersion"], "finalizers": left}
        await self._patch(path, {"metadata": body})

    async def forget_pod(self, namespace: str, name: str, uid: str) -> None:
        """Remove exactly the pod with `uid` without waiting for its kubelet; one that is gone already is fine.

        A forced delete alone would not do: the Job's finalizer holds the pod until its kubelet has said that it ended.
        """
        await self.untrack_pod(namespace, name, uid)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        await self._delete(path, {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0})

    async def admit_pod(self, namespace: str, name: str, uid: str, *, gate: str, avoid: Sequence[str]) -> None:
        """Take the gate off exactly the pod with `uid`, and keep it away from the nodes in `avoid`."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        if not avoid:
            # By the gate's name, so that others' stay without anybody having read them.
            spec: dict[str, Any] = {"schedulingGates": [{"$patch": "delete", "name": gate}]}
            body = {"metadata": {"uid": uid}, "spec": spec}
            await self._call("PATCH", path, body, "application/strategic-merge-patch+json", _MANAGED)
            return
        pod = await self._call("GET", path)
        if pod["metadata"]["uid"] != uid:
            return
        gates = [entry for entry in pod["spec"].get("schedulingGates") or [] if entry["name"] != gate]
        spec = {"schedulingGates": gates, "affinity": without_nodes(pod["spec"].get("affinity") or {}, avoid)}
        version = pod["metadata"]["resourceVersion"]
        await self._patch(path, {"metadata": {"uid": uid, "resourceVersion": version}, "spec": spec})

    async def suspend_job(self, namespace: str, name: str) -> None:
        """Suspend a Job: its controller deletes the pods and makes no new ones."""
        await self._patch(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", {"spec": {"suspend": True}})

    async def annotate_pod(self, namespace: str, name: str, uid: str, annotations: dict[str, str]) -> None:
        """Set annotations of exactly the pod with `uid`; 409 when another took its name."""
        body = {"metadata": {"uid": uid, "annotations": annotations}}
        await self._patch(f"/api/v1/namespaces/{namespace}/pods/{name}", body)

    async def write_status(self, run: dict[str, Any], status: dict[str, Any]) -> None:
        """Replace the status of the run as it was read; 409 when it has changed since."""
        metadata = run["metadata"]
        body = {**run, "status": status}
        await self._call("PUT", _run_path(metadata["namespace"], metadata["name"]) + "/status", body, query=_MANAGED)

    async def create_event(self, namespace: str, event: dict[str, Any]) -> None:
        """Post an Event."""
        await self._call("POST", f"/api/v1/namespaces/{namespace}/events", event)

    async def _list(self, path: str, labels: Mapping[str, str] | None = None) -> Listed:
        selector = ",".join(f"{k}={v}" for k, v in (labels or {}).items())
        listed = await self._call("GET", path, query=[("labelSelector", selector)] if selector else [])
        return Listed(listed["items"], int(listed["metadata"]["resourceVersion"]))

    async def _patch(self, path: str, body: dict[str, Any]) -> None:
        await self._call("PATCH", path, body, "application/merge-patch+json", _MANAGED)

    async def _delete(self, path: str, options: dict[str, Any]) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        try:
            await self._call("DELETE", path, body)
        except ApiError as error:
            # 409: another object has taken the name, so the one that was meant is gone.
            if error.status not in (404, 409):
                raise

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: list[tuple[str, str]] | None = None,
        *,
        guarded: bool = True,
        accept: str = "application/json",
    ) -> dict[str, Any]:
        if guarded and method != "GET" and not self.may_write():
            raise NotLeading
        headers = {"Accept": accept, "Content-Type": content_type}
        request = await self._api.param_serialize(
            method, path, query_params=query or [], header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            # Without preloading the client hands errors through as they are: one place turns them into ours.
            response = await self._api.call_api(*request, _preload_content=False, _request_timeout=_TIMEOUT_SECONDS)
            status, raw = response.status, await response.read()
        except client.ApiException as error:
            status, raw = error.status, (error.body or "").encode()
        try:
            answer = json.loads(raw) if raw else {}
        except ValueError:
            answer = {"message": raw[:200].decode(errors="replace")}
        if not 200 <= status < 300:
            raise ApiError(status, answer.get("reason", "Unknown"), answer.get("message", ""))
        # What a deletion answers may be the last of an object, or its first moment of ending: its event tells which.
        if method == "PATCH" and answer.get("kind") in ("Job", "Pod"):
            self.wrote(answer)
        return dict(answer)


def without_nodes(affinity: Mapping[str, Any], avoid: Sequence[str]) -> dict[str, Any]:
    """The affinity, narrowed so that none of the nodes in `avoid` fits: every term of its own gets the same limit.

    Kubernetes lets a gated pod's affinity only ever be narrowed.
    """
    limits = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in avoid]
    node = dict(affinity.get("nodeAffinity") or {})
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution") or {"nodeSelectorTerms": [{}]}
    terms = [
        {**term, "matchFields": [*(term.get("matchFields") or []), *limits]} for term in required["nodeSelectorTerms"]
    ]
    node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": node}


_MANAGED = [("fieldManager", MANAGER)]


def _lease_path(namespace: str, name: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"


def _run_path(namespace: str, name: str) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}"
