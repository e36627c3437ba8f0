"""Spec of what goes wrong: what failures cost, when a node is avoided, and when a worker counts as hung."""

from typing import Annotated, Literal

from pydantic import Field

from skywork_operator.api.fields import Base, Duration


class Backoff(Base):
    """Pause before a generation that follows failures: none after the first, then doubling."""

    first: Duration = "1s"
    """Pause after the second failure in a row."""
    max: Duration = "1m"
    """Longest pause."""


class AvoidNodes(Base):
    """When a node is kept out of the run. Lost nodes, hangs and killed workers give their node a strike; a hardware
    fault counts for as many as are needed."""

    strikes: Annotated[int, Field(ge=0, le=100)] = 3
    """Strikes after which pods stay away from a node; 0 never avoids one."""
    max: Annotated[int, Field(ge=1, le=100)] = 4
    """Most nodes that are avoided at a time; the longest avoided is forgiven first. Where nothing speaks of hardware,
    no more than half of `trainer.nodes.max`: what strikes all nodes is none's fault."""
    forgive_after: Duration = "6h"
    """How long strikes count."""


class FailurePolicy(Base):
    """What failures cost, and when to give up."""

    restarts_without_progress: Annotated[int, Field(ge=0, le=1000)] = 5
    """Failures of the run's own making that may follow each other within `window` without a new checkpoint. Deleted and
    evicted pods, lost nodes, a halved micro-batch and storage that cannot be reached do not count."""
    window: Duration = "6h"
    """How long a failure counts."""
    backoff: Backoff = Backoff()
    """Pauses between restarts."""
    node_lost_after: Duration = "3s"
    """How long a node that is not ready, and whose agent is silent, may stay so before its pod is given up."""
    avoid_nodes: AvoidNodes = AvoidNodes()
    """Nodes that keep failing."""
    node_check: Literal["Never", "AfterFailure", "Always"] = "Never"
    """Before which generations every node computes and talks to two neighbours, so that a broken one is found and
    avoided: those that follow a failure without a new checkpoint since, or all. Takes a few seconds."""


class HangDetection(Base):
    """How long a worker may show no sign of progress, by what it is doing. Past that the stacks of all workers are
    taken, and the generation is ended and started again from its newest checkpoint."""

    initialize_timeout: Duration = "10m"
    """Joining its peers, and opening the data."""
    restore_timeout: Duration = "1h"
    """Reading a checkpoint."""
    first_step_timeout: Duration = "30m"
    """The first step of a generation, compilation included."""
    step_timeout: Duration = "5m"
    """Every other step."""
    validate_timeout: Duration = "30m"
    """Between two batches of a validation."""
    save_timeout: Duration = "30m"
    """Waiting for a checkpoint to be stored."""
