"""The Kubernetes API as the operator uses it: plain dictionaries in, plain dictionaries out."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from kubernetes.aio import client, config

from skywork_operator.api import GROUP, PLURAL, VERSION
from skywork_operator.render import MANAGED_LABEL, MANAGER

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_TIMEOUT_SECONDS = 30
_PATHS = {
    "ConfigMap": ("/api/v1", "configmaps"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
}


class ApiError(Exception):
    """The API server refused or could not answer; `status` is the HTTP code, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Cluster:
    """One connection to the API server; use as an async context manager."""

    def __init__(self, api: Any) -> None:
        self._api = api

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

    async def list_runs(self, namespace: str | None) -> list[dict[str, Any]]:
        """All SkyworkRuns of one namespace, or of the cluster."""
        prefix = f"/apis/{GROUP}/{VERSION}"
        path = f"{prefix}/namespaces/{namespace}/{PLURAL}" if namespace else f"{prefix}/{PLURAL}"
        return await self._items(path)

    async def list_jobs(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Jobs with all of `labels`."""
        return await self._items(f"/apis/batch/v1/namespaces/{namespace}/jobs", labels)

    async def list_pods(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Pods with all of `labels`."""
        return await self._items(f"/api/v1/namespaces/{namespace}/pods", labels)

    async def apply(self, manifest: dict[str, Any]) -> None:
        """Server-side apply of a whole manifest, taking over fields that others set."""
        prefix, plural = _PATHS[manifest["kind"]]
        metadata = manifest["metadata"]
        path = f"{prefix}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        query = [("fieldManager", MANAGER), ("force", "true")]
        await self._call("PATCH", path, manifest, "application/apply-patch+yaml", query)

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
            }
        )

    async def suspend_job(self, namespace: str, name: str) -> None:
        """Suspend a Job: its controller deletes the pods and makes no new ones."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"
        await self._call("PATCH", path, {"spec": {"suspend": True}}, "application/merge-patch+json", _MANAGED)

    async def annotate_pod(self, namespace: str, name: str, uid: str, annotations: dict[str, str]) -> None:
        """Set annotations of exactly the pod with `uid`; 409 when another took its name."""
        body = {"metadata": {"uid": uid, "annotations": annotations}}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        await self._call("PATCH", path, body, "application/merge-patch+json", _MANAGED)

    async def write_status(self, run: dict[str, Any], status: dict[str, Any]) -> None:
        """Replace the status of the run as it was read; 409 when it has changed since."""
        metadata = run["metadata"]
        body = {**run, "status": status}
        await self._call("PUT", _run_path(metadata["namespace"], metadata["name"]) + "/status", body, query=_MANAGED)

    async def create_event(self, namespace: str, event: dict[str, Any]) -> None:
        """Post an Event."""
        await self._call("POST", f"/api/v1/namespaces/{namespace}/events", event)

    async def _items(self, path: str, labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        selector = ",".join(f"{k}={v}" for k, v in (labels or {}).items())
        listed = await self._call("GET", path, query=[("labelSelector", selector)] if selector else [])
        items: list[dict[str, Any]] = listed["items"]
        return items

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: list[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json", "Content-Type": content_type}
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
        return dict(answer)


_MANAGED = [("fieldManager", MANAGER)]


def _run_path(namespace: str, name: str) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}"
