"""The training loss spiked lately; what a spike is, `guards.SpikeDetector` says."""

import math

from skywork_trainer.config import Diagnosis, Guards, SpikeAction
from skywork_trainer.diagnosis.evidence import Evidence, RecentStep
from skywork_trainer.diagnosis.series import is_measured
from skywork_trainer.guards import RECALLED_WINDOWS, Spike, SpikeDetector

TYPE = "LossSpiking"
LEAST_STEPS = 32

_DONE = {
    SpikeAction.ALERT: "guards.spike.action Skip would keep such steps out of the weights",
    SpikeAction.SKIP: "their gradients were dropped",
    SpikeAction.ROLLBACK: "the run returns to a checkpoint before it",
}


def loss_spiking(evidence: Evidence) -> Diagnosis | None:
    """Return whether one of the stage's newest `guards.window_steps` steps was a spike; None with too few to tell.

    The first `guards.grace_steps` of a stage are none: the jump that another mixture makes is no spike.
    """
    guards, span = evidence.guards, evidence.span
    recalled = evidence.step - RECALLED_WINDOWS * guards.window_steps
    steps = [each for each in evidence.steps if each.step > max(span.first, recalled)]
    # The detector numbers steps by those done before them.
    detector = SpikeDetector(guards, stage_start=span.first)
    seen = [(each, detector.see(each.step - 1, each.loss if is_measured(each.loss) else math.nan)) for each in steps]
    judged = [each for each in steps if each.step - 1 >= span.first + guards.grace_steps and is_measured(each.loss)]
    lately = evidence.step - guards.window_steps
    spikes = [spike for each, spike in seen if spike is not None and each.step > lately]
    if spikes:
        return Diagnosis(type=TYPE, found=True, reason="Spike", message=_message(spikes, steps, guards))
    if len(judged) < LEAST_STEPS:
        return None
    return Diagnosis(
        type=TYPE, found=False, reason="Quiet", message=f"No spike in the last {_looked_at(steps, guards)} steps."
    )


def _looked_at(steps: list[RecentStep], guards: Guards) -> int:
    return min(guards.window_steps, len(steps))


def _message(spikes: list[Spike], steps: list[RecentStep], guards: Guards) -> str:
    highest = max(spikes, key=lambda spike: spike.loss - spike.mean)
    count = "1 spike" if len(spikes) == 1 else f"{len(spikes)} spikes"
    return (
        f"{count} in the last {_looked_at(steps, guards)} steps: {highest}; {_DONE[guards.spike_action]}. "
        "If they go on, lower the learning rate, and look at the data of those steps."
    )
