"""One held-out domain gets worse while others get better: the distribution shifts, or repeated text is learnt by heart.

A domain is compared with its own lowest loss of the stage, so how long the rise took does not matter. The point before
the stage's first step takes no part: a jump at the switch is what another mixture does, see `forgetting`.
"""

import numpy as np

from skywork_trainer.config import Diagnosis
from skywork_trainer.diagnosis import wording
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.series import Floats, aligned, holds, noise, running_median

TYPE = "DomainsDiverging"
LEAST_RISE = 0.02
"""Nats per token above its lowest."""
LEAST_FALL = 0.01
"""Nats per token that another domain fell meanwhile."""
RISE_SIGMAS, FALL_SIGMAS = 5.0, 3.0
LASTING_POINTS = 2
LEAST_POINTS = 6
SEVERAL_EPOCHS = 3.0


def domains_diverging(evidence: Evidence) -> Diagnosis | None:
    """Return whether some domains rise while others fall; None with fewer than two domains or LEAST_POINTS points."""
    points = [point for point in evidence.stage_points if not point.stage_start]
    names, steps_N, losses_DN = aligned(points)
    if len(names) < 2 or len(steps_N) < LEAST_POINTS:
        return None
    smooth_DM = np.stack([running_median(losses_N) for losses_N in losses_DN])
    sigma_D = np.array([noise(steps_N, losses_N) for losses_N in losses_DN])
    rising = [domain for domain in range(len(names)) if _rises(domain, smooth_DM, sigma_D)]
    if not rising:
        return Diagnosis(type=TYPE, found=False, reason="Together", message="No domain rises while others fall.")
    newest = smooth_DM.shape[1] - 1
    lowest = {domain: int(np.argmin(smooth_DM[domain])) for domain in rising}
    earliest = min(lowest.values())
    falling = sorted(
        (domain for domain in range(len(names)) if domain not in rising),
        key=lambda domain: smooth_DM[domain, newest] - smooth_DM[domain, earliest],
    )

    def moved(domain: int, since: int) -> str:
        # Point m of the smooth curve is the median of points m to m + 2.
        trained = wording.tokens(steps_N[since + 1] * evidence.tokens_per_step)
        before, now = smooth_DM[domain, since], smooth_DM[domain, newest]
        return f"{names[domain]} {before:.3f} -> {now:.3f} ({now - before:+.3f} since {trained})"

    worse = wording.listed(moved(domain, lowest[domain]) for domain in rising)
    better = wording.listed((moved(domain, earliest) for domain in falling), most=3)
    reason, advice = _cause(evidence)
    message = f"Worse: {worse}. Meanwhile: {better}. {advice}"
    return Diagnosis(type=TYPE, found=True, reason=reason, message=message)


def _rises(domain: int, smooth_DM: Floats, sigma_D: Floats) -> bool:
    """Return whether a domain has risen, and others have fallen meanwhile, for several points."""
    needed_D = np.maximum(LEAST_RISE, RISE_SIGMAS * sigma_D)
    rise_DM = smooth_DM - np.minimum.accumulate(smooth_DM, axis=1)
    fall_D = np.maximum(LEAST_FALL, FALL_SIGMAS * sigma_D)
    enters, leaves = [], []
    for m in range(smooth_DM.shape[1]):
        rise = rise_DM[domain, m] / needed_D[domain]
        if rise < 0.5:
            enters.append(False)
            leaves.append(True)
            continue
        since = int(np.argmin(smooth_DM[domain, : m + 1]))
        others_D = rise_DM[:, m] < needed_D
        others_D[domain] = False
        fall = float(np.max((smooth_DM[:, since] - smooth_DM[:, m]) / fall_D, where=others_D, initial=0.0))
        enters.append(rise >= 1.0 and fall >= 1.0)
        leaves.append(fall < 0.5)
    return holds(enters, leaves, times=LASTING_POINTS)


def _cause(evidence: Evidence) -> tuple[str, str]:
    often = wording.repeated(evidence.epochs, SEVERAL_EPOCHS)
    if often and evidence.span.steady_mixture:
        return "Overfitting", (
            f"Repeated data is likely learnt by heart ({wording.times_read(often)}): "
            "lower its share or add fresh text of the domains that rise."
        )
    return "DistributionShift", (
        "The mixture moves away from what rises: give its sources a larger share, or accept the trade and say so."
    )
