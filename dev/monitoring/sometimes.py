"""Expressions that a healthy run leaves empty, each with the reason.

All alerts are such; a promtool test makes each of them fire, and another case leave it silent. For the panels below a
promtool test has data that fills them.
"""

from collections.abc import Mapping

EMPTY_WITHOUT: Mapping[str, str] = {
    "fleet/Alerts that fire/A": "an alert that fires",
    "fleet/Conditions to look at/A": "a condition besides those of a run's course",
    "run/ETA/A": "a run that trains",
    "fleet/Runs/E": "a run that trains",
    "run/Reference-normalised loss by domain/A": "validation.referenceTokenizer",
    "run/Spikes/A": "a spike",
    "run/Model FLOPs utilisation/A": "a device whose peak is known",
    "run/Failed saves/A": "a save that failed",
    "run/Restarts by reason/A": "a restart",
    "run/Newest recovery/A": "a restart",
    "run/annotation/Restarts": "a restart",
    "run/annotation/Generations": "a restart",
    "run/annotation/Diagnoses": "a diagnosis",
    "nodes/Stragglers/A": "a straggler",
    "nodes/Memory of the pod/B": "a pod with a memory limit",
    "nodes/Device memory/A": "a GPU",
    "nodes/Device memory in use/A": "a GPU",
    "nodes/Hangs/A": "a hang",
    "nodes/Ends of workers/A": "a worker that ended",
}


def may_be_empty(where: str) -> bool:
    """Return whether an expression has no data while all is well."""
    return where.startswith("alert/") or where in EMPTY_WITHOUT
