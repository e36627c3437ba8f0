"""What the trainer's detectors say, as conditions that its operator may or may not know. Pure."""

import re
from collections.abc import Sequence

from skywork_trainer.config import Diagnosis

from skywork_operator.api.status import Condition
from skywork_operator.policies.conditions import DIAGNOSED, OWN

MOST_UNKNOWN = 16
"""Kinds of a newer trainer that are taken over."""
MOMENTARY = ("LossSpiking", "DataStarved", "ThroughputLow")
"""Said of a run that trains: they end with training."""
_CAMEL_CASE = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
_LONGEST_MESSAGE = 1000


def accepted(said: Sequence[Diagnosis], conditions: Sequence[Condition]) -> list[Diagnosis]:
    """The diagnoses that become conditions of the run: none in the operator's own name, and never without bound."""
    unknown = {c.type for c in conditions} - set(OWN) - set(DIAGNOSED)
    taken: dict[str, Diagnosis] = {}
    for diagnosis in said:
        type = diagnosis.type
        if type in OWN or not _CAMEL_CASE.fullmatch(type):
            continue
        if type not in DIAGNOSED:
            if type not in unknown and len(unknown) >= MOST_UNKNOWN:
                continue
            unknown.add(type)
        reason = diagnosis.reason
        if not _CAMEL_CASE.fullmatch(reason):
            reason = "Found" if diagnosis.found else "NotFound"
        message = diagnosis.message[:_LONGEST_MESSAGE]
        taken[type] = diagnosis.model_copy(update={"reason": reason, "message": message})
    return list(taken.values())
