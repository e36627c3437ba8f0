"""Steps wait for their data."""

import numpy as np

from skywork_trainer.config import Diagnosis
from skywork_trainer.diagnosis.evidence import Evidence
from skywork_trainer.diagnosis.pace import settled_steps
from skywork_trainer.diagnosis.series import Floats, holds

TYPE = "DataStarved"
WINDOW_STEPS = 64
LONGEST_LEFT_OUT = 2
"""Waits of a window; one stall of the storage is no starvation."""
MOST_SHARE, LEAVES_SHARE = 0.05, 0.03
LEAST_WAIT_SECONDS = 0.005
"""Of a step on average; less is not worth anybody's time."""
LASTING_STEPS = 8


def data_starved(evidence: Evidence) -> Diagnosis | None:
    """Return whether more than MOST_SHARE of the step time waits for data; None before a window is full."""
    steps_N2 = settled_steps(evidence.steps, evidence.generation_step)
    if len(steps_N2) < WINDOW_STEPS:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(steps_N2, WINDOW_STEPS, axis=0)
    share_M, wait_M = _shares(windows[:, 0, :], windows[:, 1, :])
    starved_M = (share_M > MOST_SHARE) & (wait_M > LEAST_WAIT_SECONDS)
    fed_M = (share_M < LEAVES_SHARE) | (wait_M < LEAST_WAIT_SECONDS * LEAVES_SHARE / MOST_SHARE)
    if not holds(starved_M.tolist(), fed_M.tolist(), times=LASTING_STEPS):
        message = f"Steps wait for data for less than {MOST_SHARE:.0%} of their time."
        return Diagnosis(type=TYPE, found=False, reason="Fed", message=message)
    return Diagnosis(
        type=TYPE,
        found=True,
        reason="WaitsForData",
        message=(
            f"{share_M[-1]:.0%} of the time of the last {WINDOW_STEPS} steps waits for data ({wait_M[-1]:.2g} s a "
            f"step), the {LONGEST_LEFT_OUT} longest waits left out. Look at storage latency, failed requests and cache "
            "misses in the nodes' metrics: a larger cache on the nodes, or storage closer to them, is what helps."
        ),
    )


def _shares(seconds_MW: Floats, waits_MW: Floats) -> tuple[Floats, Floats]:
    """Return the share of waiting and the mean wait of each window, its longest waits left out."""
    kept_MW = np.argsort(waits_MW, axis=1, kind="stable")[:, :-LONGEST_LEFT_OUT]
    waits_M = np.take_along_axis(waits_MW, kept_MW, axis=1).sum(axis=1)
    seconds_M = np.take_along_axis(seconds_MW, kept_MW, axis=1).sum(axis=1)
    return waits_M / np.maximum(seconds_M, 1e-9), waits_M / kept_MW.shape[1]
