"""Spec of where a run trains: on how many nodes, on which, and when."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.types import StringConstraints

from skywork_operator.api.fields import Base, Duration, atomic, rules

NodeCount = Annotated[int, Field(ge=1, le=4096)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=253)]


class Nodes(Base):
    """How many nodes the run may train on."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.min <= self.max", "trainer.nodes.min must not be greater than trainer.nodes.max"),
            (
                "!has(self.allowed) || (self.allowed.exists(n, n >= self.min && n <= self.max))",
                "trainer.nodes.allowed must name at least one size from trainer.nodes.min to trainer.nodes.max",
            ),
        )
    )

    min: Annotated[int, Field(ge=1, le=4096)] = 1
    """Fewest nodes to train on; with fewer the run waits."""
    max: Annotated[int, Field(ge=1, le=4096)]
    """Most nodes to train on, one pod each. May be changed while the run trains, also by `kubectl scale`."""
    spares: Annotated[int, Field(ge=0, le=64)] = 0
    """Pods beyond max that stand by, warm: one takes the place of a lost node at once."""
    allowed: Annotated[list[NodeCount], Field(min_length=1, max_length=64, json_schema_extra=atomic())] | None = None
    """World sizes to train on, in nodes; every size from min to max when left out."""
    shrink_after: Duration = "2m"
    """How long a generation waits for all `max` nodes before it starts with those that are ready."""
    grow_after: Duration = "30s"
    """How long a world trains before it takes in nodes that have become ready, against flapping."""


class Scheduling(Base):
    """Where and when pods may run."""

    queue_name: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = None
    """Kueue LocalQueue that the Jobs wait in; Kueue then says when pods are made."""
    priority_class_name: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    """PriorityClass of the pods."""
    gang: Literal["Auto", "None", "Volcano", "Coscheduling"] = "Auto"
    """Whose PodGroup keeps pods of a stage from being scheduled before trainer.nodes.min of them fit, a number that is
    taken when the stage begins. Auto is Kubernetes' own, where the cluster serves it. Without any, as with None, each
    pod is by itself, and those that have a place hold it while the others wait. With Volcano and Coscheduling the pods
    go to volcano or scheduler-plugins-scheduler, unless trainer.template.spec.schedulerName says otherwise."""
    topology_keys: Annotated[list[LabelKey], Field(max_length=8, json_schema_extra=atomic())] = [
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/rack",
    ]
    """Node labels, widest first, by which ranks are laid out: nodes of one value become neighbours. Needs an operator
    that may read nodes."""
