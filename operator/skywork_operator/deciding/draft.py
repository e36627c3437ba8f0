"""The status and events that a pass collects before it returns them as a Plan."""

from dataclasses import dataclass, replace

from skywork_operator.api.status import RequestedValidation, SkyworkRunStatus, TimeSpent
from skywork_operator.policies import diagnosis, goodput
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
        nodes = self.status.nodes
        summary = f"{nodes.training}/{nodes.desired}" if nodes.desired else ""
        self.update(
            observed_generation=self.run.generation,
            nodes=nodes.model_copy(update={"summary": summary}),
        )
        # Idle time alone is no reason to write: whoever wants it to the second adds what has gone by since.
        if self.status.start_time is not None and (self.status != self.run.status or self.status.time is None):
            time = goodput.until(self.status.time or TimeSpent(), goodput.wall_seconds(self.status, self.now))
            ratio = goodput.ratio(time)
            self.update(time=time, goodput=f"{ratio:.3f}" if ratio is not None else None)
        return replace(Plan(status=self.status, events=self.events), **fields)  # type: ignore[arg-type]

    def give_up(self, reason: str, message: str) -> None:
        """Say that the run has failed for good."""
        self.tell("Warning", reason, message)
        self.say("Running", False, reason, message)
        self.say("Succeeded", False, reason, message)
        self.say("Failed", True, reason, message)
        self.update(state="Failed", tokens_per_second=0, completion_time=timestamp(self.now))
        self.rest()

    # -- validations that were asked for -----------------------------------------------------------------------------

    @property
    def validate_request(self) -> str:
        """The validation that was asked for and is still to be done; empty when none is."""
        asked, done = self.run.validate_request, self.status.requested_validation
        return "" if done is not None and done.request == asked else asked

    def refuse_validation(self, why: str) -> None:
        """Say once that a validation which was asked for will not take place."""
        if self.validate_request:
            self.tell("Warning", "NotValidated", f"skywork.dev/validate was set, but {why}: nothing is measured")
            self.validation_done(self.status.step)

    def validation_done(self, step: int) -> None:
        """Note that what was asked for is answered, so that it is answered once."""
        done = RequestedValidation(request=self.run.validate_request, step=step, time=timestamp(self.now))
        self.update(requested_validation=done)

    # -- a run that does not train -----------------------------------------------------------------------------------

    def rest(self) -> None:
        """Take back what is said only of a run that trains."""
        self.update(eta=None, estimated_completion=None, stragglers=[])
        for type in (*diagnosis.MOMENTARY, "CheckpointStale", "Straggling"):
            if self.holds(type):
                self.say(type, False, "NotTraining", "nothing trains now")
