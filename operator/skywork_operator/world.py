"""What a reconcile pass sees and what it wants: plain data between observe, decide and act."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from skywork_trainer.config import AgentPhase, AgentStatus, Failure, Membership, Role

from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec

Key = tuple[str, str]
"""Namespace and name of a run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The SkyworkRun, parsed."""

    name: str
    namespace: str
    uid: str
    generation: int
    """metadata.generation: changes with the spec."""
    created_seconds: int
    spec: SkyworkRunSpec
    status: SkyworkRunStatus
    validate_request: str = ""
    """All domains shall be measured once for each new value of this."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage's Job."""

    stage: str
    uid: str
    complete: bool = False
    failed: str | None = None
    """Message of the Job's Failed condition."""
    suspended: bool = False
    pods: int | None = None
    """Indexes it has, `completions` as well as `parallelism`."""
    deleting: bool = False
    """It was deleted, and goes when its pods have ended."""
    blocked: tuple[str, str] | None = None
    """Reason and message of what keeps it from making pods."""


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """A Job that reads a source's inputs, joined with what its pods say."""

    source: str
    reading: Literal["scan", "write"]
    name: str
    parts: int
    succeeded: int = 0
    """Parts that are done."""
    complete: bool = False
    failed: str | None = None
    """Message of the Job's Failed condition."""
    suspended: bool = False
    deleting: bool = False
    """It was deleted, and goes when its pods have ended."""
    failures: tuple[Failure, ...] = ()
    """Last words of its pods that failed."""
    blocked: tuple[str, str] | None = None
    """Reason and message of what keeps one of its pods from running."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine, as far as it matters to the pods on it."""

    name: str
    ready: bool = True
    unready_since: float | None = None
    """Since when its Ready condition is not True."""
    out_of_service: bool = False
    """A person or a cloud has tainted it node.kubernetes.io/out-of-service: it is certain to be off."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """One pod of the current stage's Job, joined with what its agent says."""

    name: str
    uid: str
    index: int
    """Completion index."""
    ip: str = ""
    phase: str = "Pending"
    ready: bool = False
    """Its Ready condition is True: standing by, its agent has imported all that workers need; training, all is well."""
    ready_since: float | None = None
    """Since when its Ready condition is True."""
    unready_since: float | None = None
    """Since when its Ready condition is False."""
    terminating: bool = False
    ends_by: float | None = None
    """When its grace period ends; set while it terminates."""
    disruption: str = ""
    """Reason of its DisruptionTarget condition: who made it end."""
    out_of_memory: bool = False
    """The kernel killed its container for memory."""
    limited: bool = False
    """Its memory has a limit, so that this can happen."""
    node: str = ""
    """Name of its node; empty until it is scheduled."""
    tracked: bool = False
    """Its Job's finalizer holds it until the Job has counted its end."""
    gated: bool = False
    """It waits for our word before it is scheduled."""
    lost: tuple[str, str] | None = None
    """Reason and message of why it is counted as gone although the cluster shows it; set by `policies.nodes`."""
    membership: Membership | None = None
    agent: AgentStatus | None = None
    """Answer of GET /status; None while the agent cannot be reached."""
    last_words: AgentStatus | None = None
    """Termination message of a pod that ended."""
    blocked: tuple[str, str] | None = None
    """Reason and message of what keeps the pod from running."""

    @property
    def usable(self) -> bool:
        """Whether the pod can be given a place in a world."""
        return (
            self.phase == "Running"
            and not self.terminating
            and self.lost is None
            and bool(self.ip)
            and self.agent is not None
            and self.agent.phase in (AgentPhase.STANDBY, AgentPhase.TRAINING, AgentPhase.FAILED)
        )

    @property
    def done(self) -> bool:
        """Whether it has done its part of the stage, which is therefore trained and committed."""
        return self.phase == "Succeeded" or (self.agent is not None and self.agent.phase is AgentPhase.DONE)

    def trains(self, generation: int) -> bool:
        """Whether the pod holds a place in `generation`."""
        word = self.membership
        return word is not None and word.role is Role.TRAIN and word.generation == generation

    def failure(self, generation: int) -> Failure | None:
        """What went wrong in the pod's part of `generation`, if anything did."""
        for said in (self.agent, self.last_words):
            if said is not None and said.generation == generation and said.failure is not None:
                return said.failure
        return None


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything one pass saw."""

    run: Run
    jobs: dict[str, Job] = field(default_factory=dict)
    """By stage."""
    prepare_jobs: tuple[PrepareJob, ...] = ()
    pods: tuple[Pod, ...] = ()
    """Of the newest stage that has a Job; replaced pods that ended are among them."""
    nodes: Mapping[str, Node] | None = None
    """Every node of the cluster by name; None where the operator may not read nodes."""
    pod_groups: str | None = None
    """API version of the PodGroups that the run wants and the cluster serves; looked for while a stage may start."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A Kubernetes Event to post."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one pass wants done, in the order of the fields, and events last."""

    status: SkyworkRunStatus
    objects: tuple[dict[str, Any], ...] = ()
    """Whole manifests for server-side apply."""
    suspend: tuple[str, ...] = ()
    """Names of Jobs to be suspended."""
    delete_jobs: tuple[str, ...] = ()
    """Names of Jobs to be deleted, and their pods before them."""
    resize: tuple[tuple[str, int], ...] = ()
    """Names of Jobs, and how many indexes each shall have."""
    untrack: tuple[Pod, ...] = ()
    """Pods whose end their Job shall not count."""
    forget: tuple[Pod, ...] = ()
    """Pods whose end nobody will report any more, to be removed as they are."""
    admit: tuple[tuple[Pod, tuple[str, ...]], ...] = ()
    """Gated pods that may be scheduled, and the nodes they shall stay away from."""
    delete_pods: tuple[Pod, ...] = ()
    """Pods to be made anew, elsewhere."""
    memberships: tuple[tuple[Pod, Membership], ...] = ()
    events: tuple[Event, ...] = ()
    delete_run: bool = False
    """The run has had its time to be looked at."""
    requeue_after_seconds: float | None = None
