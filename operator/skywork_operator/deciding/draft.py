"""The status and events that a pass collects before it returns them as a Plan."""

from dataclasses import dataclass, replace

from skywork_trainer.config import AgentStatus

from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.policies import report
from skywork_operator.policies.conditions import find, set_condition
from skywork_operator.times import timestamp
from skywork_operator.world import Event, Plan, Run


@dataclass
class Draft:
    """What one pass has found so far."""

    run: Run
    status: SkyworkRunStatus
    now: float
    events: tuple[Event, ...] = ()

    def holds(self, type: str) -> bool:
        """Whether a condition is True."""
        condition = find(self.status.conditions, type)
        return condition is not None and condition.status == "True"

    def denied(self, type: str) -> bool:
        """Whether a condition is False, and not merely unsaid."""
        condition = find(self.status.conditions, type)
        return condition is not None and condition.status == "False"

    def reason(self, type: str) -> str:
        """A condition's reason; empty while it was never said."""
        condition = find(self.status.conditions, type)
        return condition.reason if condition is not None else ""

    def say(self, type: str, status: bool | None, reason: str, message: str) -> None:
        """Set a condition."""
        conditions = set_condition(
            self.status.conditions,
            type=type,
            status=status,
            reason=reason,
            message=message,
            generation=self.run.generation,
            now=self.now,
        )
        self.update(conditions=conditions)

    def tell(self, kind: str, reason: str, message: str) -> None:
        """Post an event."""
        self.events = (*self.events, Event(kind=kind, reason=reason, message=message))

    def update(self, **fields: object) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def plan(self, **fields: object) -> Plan:
        """The plan of this pass."""
        status = self.status.model_copy(update={"observed_generation": self.run.generation})
        return replace(Plan(status=status, events=self.events), **fields)  # type: ignore[arg-type]

    def give_up(self, reason: str, message: str) -> None:
        """Say that the run has failed for good."""
        self.tell("Warning", reason, message)
        self.say("Running", False, reason, message)
        self.say("Succeeded", False, reason, message)
        self.say("Failed", True, reason, message)
        self.update(state="Failed", tokens_per_second=0, completion_time=timestamp(self.now))

    def hear(self, words: AgentStatus | None, stage: str) -> None:
        """Take over what rank 0 reports; what is wrong is told of once, and stays in the status."""
        if words is None:
            return
        self.status = report.with_progress(self.status, words, self.run, stage)
        warnings = report.warnings(words, self.status)
        if warnings:
            if find(self.status.conditions, "DataRepeated") is None:
                self.tell("Warning", "SourceRepeated", warnings)
            self.say("DataRepeated", True, "SourceRepeated", warnings)
        corrupt, before = report.corrupt(words, self.status), find(self.status.conditions, "CheckpointCorrupt")
        if corrupt:
            if before is None or before.message != corrupt:
                self.tell("Warning", "CheckpointCorrupt", corrupt)
            self.say("CheckpointCorrupt", True, "PassedOver", corrupt)
        elif corrupt == "" and before is not None and before.status == "True":
            self.say("CheckpointCorrupt", False, "NoneFound", "every checkpoint can be read")
        reduced = report.reduced_micro_batch(words, self.run.spec)
        if reduced and find(self.status.conditions, "MicroBatchReduced") is None:
            self.tell("Warning", "OutOfMemory", reduced)
        if reduced:
            self.say("MicroBatchReduced", True, "OutOfMemory", reduced)
