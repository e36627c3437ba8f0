"""Conditions, after the Kubernetes API conventions."""

from collections.abc import Sequence

from skywork_operator.api.status import Condition
from skywork_operator.times import timestamp

DIAGNOSED = (
    "DomainsDiverging",
    "Forgetting",
    "Plateau",
    "GapGrowing",
    "LossSpiking",
    "DataStarved",
    "ThroughputLow",
    "ValidationIncomplete",
)
"""What the trainer finds."""
_STATE = ("Accepted", "Prepared", "Running", "Suspended", "DataRepeated", "CheckpointCorrupt", "CheckpointStale")
_REST = ("MicroBatchReduced", "Straggling")
_END = ("Succeeded", "Failed")
OWN = (*_STATE, *_REST, *_END)
"""What the operator says itself."""
ORDER = (*_STATE, *_REST, *DIAGNOSED, *_END)


def set_condition(
    conditions: Sequence[Condition],
    *,
    type: str,
    status: bool | None,
    reason: str,
    message: str,
    generation: int,
    now: float,
) -> list[Condition]:
    """The conditions with one of them said anew; its transition time moves only when its status changes."""
    text = {True: "True", False: "False", None: "Unknown"}[status]
    old = next((c for c in conditions if c.type == type), None)
    since = old.last_transition_time if old is not None and old.status == text else timestamp(now)
    said = Condition(
        type=type,
        status=text,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=since,
    )
    rest = {c.type: c for c in conditions if c.type != type}
    rest[type] = said
    return [rest[t] for t in ORDER if t in rest] + [c for t, c in rest.items() if t not in ORDER]


def find(conditions: Sequence[Condition], type: str) -> Condition | None:
    """The condition of one type, if it was ever said."""
    return next((c for c in conditions if c.type == type), None)
