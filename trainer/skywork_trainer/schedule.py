"""The learning rate as a pure function of the configuration and the step: nothing of it is state."""

import math

from skywork_trainer.config import RunConfig, Schedule, Stage


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the rate of step `step` (numbered over the run, from 0); a step past the last stage keeps its last rate.

    The first step of a warm-up has a small rate above zero and the last step of a Cosine ends on `final` exactly.
    """
    for index in range(len(config.stages)):
        steps = config.stage_steps(index)
        if step < steps.stop:
            return _rate(config, index, step - steps.start)
    return terminal_rate(config, len(config.stages) - 1)


def terminal_rate(config: RunConfig, index: int) -> float:
    """Return the rate of the last step of stage `index`: what a Constant stage without a peak goes on with."""
    return _rate(config, index, len(config.stage_steps(index)) - 1)


def stage_of_step(config: RunConfig, step: int) -> Stage:
    """Return the stage that trains step `step`; the last one for a step past the end."""
    for index, stage in enumerate(config.stages):
        if step < config.stage_steps(index).stop:
            return stage
    return config.stages[-1]


def _rate(config: RunConfig, index: int, local_step: int) -> float:
    spec = config.stages[index].learning_rate
    peak = spec.peak if spec.peak is not None else terminal_rate(config, index - 1)
    warmup = min(math.ceil(spec.warmup_tokens / config.global_batch_tokens), len(config.stage_steps(index)))
    if local_step < warmup:
        return peak * (local_step + 1) / warmup
    if spec.schedule is Schedule.CONSTANT:
        return peak
    final = spec.final if spec.final is not None else 0.0
    decay = len(config.stage_steps(index)) - warmup
    done = (local_step - warmup + 1) / decay
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * done))
