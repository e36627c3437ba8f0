"""Steps have become slower than this same world has shown it can do."""

import math

from skywork_trainer.config import Diagnosis
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.pace import SUSTAINED_STEPS, running_medians, settled_steps
from skywork_trainer.diagnosis.series import holds

TYPE = "ThroughputLow"
RECENT_STEPS = 32
MOST_SLOWER, LEAVES_SLOWER = 1.2, 1.1
LASTING_STEPS = 32


def throughput_low(evidence: Evidence) -> Diagnosis | None:
    """Return whether steps take MOST_SLOWER times the generation's best for long; None before it has a best."""
    steps_N2 = settled_steps(evidence.steps, evidence.generation_step)
    if len(steps_N2) < SUSTAINED_STEPS + RECENT_STEPS:
        return None
    bests = running_medians(steps_N2[:, 0], SUSTAINED_STEPS).tolist()
    told = evidence.best_step_seconds
    if told is not None and math.isfinite(told) and told > 0:
        bests.append(told)
    best = max(min(bests), 1e-9)
    ratio_M = running_medians(steps_N2[:, 0], RECENT_STEPS) / best
    if not holds((ratio_M > MOST_SLOWER).tolist(), (ratio_M < LEAVES_SLOWER).tolist(), times=LASTING_STEPS):
        message = f"Steps take less than {MOST_SLOWER:g} times the best of this generation."
        return Diagnosis(type=TYPE, found=False, reason="Steady", message=message)
    recent = steps_N2[-RECENT_STEPS:]
    waits = float(recent[:, 1].sum() / max(recent[:, 0].sum(), 1e-9))
    return Diagnosis(
        type=TYPE,
        found=True,
        reason="Slower",
        message=(
            f"A step takes {ratio_M[-1] * best:.3g} s (median of {RECENT_STEPS}), {ratio_M[-1]:.2f} times the "
            f"{best:.3g} s that this world has sustained; {waits:.0%} of it waits for data. Look for a slow node "
            "(condition Straggling), throttled or shared devices, and a slower network."
        ),
    )
