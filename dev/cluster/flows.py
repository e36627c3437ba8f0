"""What one user asks of the API server, counted by the API server: a flow for its reads, and one for its writes.

Its Leases are a flow of their own: an operator's signs of life are no work on what it operates.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WRITING = ("create", "update", "patch", "delete", "deletecollection")
_DISPATCHED = re.compile(r'apiserver_flowcontrol_dispatched_requests_total\{flow_schema="([^"]+)"[^}]*\} (\S+)')


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Requests so far, Leases left out."""

    reads: int
    writes: int


def flow_schemas(name: str, subject: Mapping[str, Any]) -> list[dict[str, Any]]:
    """FlowSchemas, named after `name`, that tell a subject's requests apart; they slow none of them down."""
    return [
        _flow(f"{name}-leases", subject, 2, ["*"], group="coordination.k8s.io", resource="leases"),
        _flow(f"{name}-writes", subject, 3, list(_WRITING)),
        _flow(f"{name}-reads", subject, 4, ["*"]),
    ]


def counted(name: str, metrics: str) -> Counted:
    """Read the counts of `flow_schemas(name, …)` off the API server's metrics, Prometheus text."""
    sums = {f"{name}-reads": 0.0, f"{name}-writes": 0.0}
    for flow, value in _DISPATCHED.findall(metrics):
        if flow in sums:
            sums[flow] += float(value)
    return Counted(reads=int(sums[f"{name}-reads"]), writes=int(sums[f"{name}-writes"]))


def _flow(
    name: str, subject: Mapping[str, Any], precedence: int, verbs: list[str], *, group: str = "*", resource: str = "*"
) -> dict[str, Any]:
    rule = {"apiGroups": [group], "resources": [resource], "verbs": verbs, "clusterScope": True, "namespaces": ["*"]}
    return {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": name},
        "spec": {
            "matchingPrecedence": precedence,
            "priorityLevelConfiguration": {"name": "exempt"},
            "rules": [{"subjects": [dict(subject)], "resourceRules": [rule]}],
        },
    }
