"""What is asked of the cluster about one run, again and again."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from skywork_trainer.config import AGENT_PORT, MEMBERSHIP_ANNOTATION, Membership, Role
from skywork_trainer.kubectl import ClusterError, Kubectl

_TURNS_BETWEEN_CURVES = 5


@dataclass(frozen=True)
class Snapshot:
    """All that was last heard of a run; what could not be asked is empty."""

    run: Mapping[str, Any]
    """The SkyworkRun object."""
    events: tuple[Mapping[str, Any], ...] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Progress of the worker of rank 0, as its agent tells."""


class Asking:
    """One run, asked for by name."""

    def __init__(self, cluster: Kubectl, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._progress: Mapping[str, Any] = {}
        self._turns = 0
        self._may_ask = {"events": True, "agent": True}

    def __call__(self) -> Snapshot:
        """Return how things stand; ClusterError when the run itself cannot be read."""
        run = self._cluster.run(self._name)
        if self._turns % _TURNS_BETWEEN_CURVES == 0:
            self._progress = self._asked("agent", lambda: self._rank_0(run)) or self._progress
        self._turns += 1
        events = self._asked("events", lambda: self._events(run)) or ()
        return Snapshot(run, tuple(events), self._progress)

    def _asked(self, what: str, ask: Any) -> Any:
        """Return the answer, None where it is not to be had; what is forbidden is not asked for again."""
        if not self._may_ask[what]:
            return None
        try:
            return ask()
        except ClusterError as error:
            self._may_ask[what] = error.reason != "Forbidden"
            return None

    def _events(self, run: Mapping[str, Any]) -> list[dict[str, Any]]:
        uid = run.get("metadata", {}).get("uid", "")
        return self._cluster.items("events", f"--field-selector=involvedObject.uid={uid}")

    def _rank_0(self, run: Mapping[str, Any]) -> Mapping[str, Any] | None:
        selector = run.get("status", {}).get("selector")
        if not selector:
            return None
        pods = self._cluster.items("pods", f"--selector={selector}")
        leader = leading_pod(pods)
        if leader is None:
            return None
        namespace, name = leader
        path = f"/api/v1/namespaces/{namespace}/pods/{name}:{AGENT_PORT}/proxy/status"
        answer = self._cluster.raw(path)
        progress = answer.get("progress") if isinstance(answer, dict) else None
        return progress if isinstance(progress, dict) else None


def leading_pod(pods: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Return namespace and name of the pod that trains as node rank 0 of the newest generation."""
    found: list[tuple[int, str, str]] = []
    for pod in pods:
        metadata = pod.get("metadata", {})
        with suppress(ValueError, TypeError, AttributeError):
            # Read as its agent reads it: the operator writes nothing that is so by default, rank 0 among it.
            word = Membership.model_validate_json((metadata.get("annotations") or {}).get(MEMBERSHIP_ANNOTATION, ""))
            if word.role is Role.TRAIN and word.rank == 0:
                found.append((word.generation, metadata["namespace"], metadata["name"]))
    return max(found)[1:] if found else None
