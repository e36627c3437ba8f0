"""How long a recovery took, part by part: detect, decide, deliver, start, initialise, restore, first step."""

from collections.abc import Sequence

from skywork_operator.api.status import Recovery
from skywork_operator.times import precise_timestamp, seconds
from skywork_operator.world import Pod

PARTS = ("detected", "decided", "delivered", "started", "initialized", "restored", "first_step")


def begun(reason: str, *, failed: float, now: float) -> Recovery:
    """The record of a recovery whose cause came at `failed` and is known `now`, Unix seconds."""
    return Recovery(
        generation=0,
        reason=reason,
        failed_time=precise_timestamp(min(failed, now)),
        detected=_text(max(now - failed, 0.0)),
    )


def decided(recovery: Recovery, *, generation: int, now: float) -> Recovery:
    """The record once the next generation is formed."""
    if recovery.generation:
        # That generation came to nothing before its first step: this is still the same recovery.
        recovery = recovery.model_copy(update={"decided": None})
    spent = float(recovery.detected or 0)
    waited = max(now - seconds(recovery.failed_time) - spent, 0.0)
    return recovery.model_copy(update={"generation": generation, "decided": _text(waited)})


def completed(recovery: Recovery, pods: Sequence[Pod]) -> Recovery:
    """The record with what agents and rank 0 tell of the rest, once the first step is done; unchanged before."""
    members = [pod.agent for pod in pods if pod.agent is not None and pod.trains(recovery.generation)]
    members = [agent for agent in members if agent.generation == recovery.generation]
    progress = next((agent.progress for agent in members if agent.progress is not None), None)
    if recovery.first_step is not None or progress is None or not progress.first_step_time:
        return recovery
    at = seconds(recovery.failed_time) + float(recovery.detected or 0) + float(recovery.decided or 0)
    marks = (
        max(agent.read_time for agent in members),
        max(agent.start_time for agent in members),
        progress.initialized_time,
        progress.restored_time,
        progress.first_step_time,
    )
    parts: dict[str, object] = {}
    for name, mark in zip(PARTS[2:], marks, strict=True):
        # Clocks of nodes differ: no part is negative, and the sum is that of the last clock asked.
        parts[name] = _text(max(mark - at, 0.0))
        at = max(mark, at)
    return recovery.model_copy(update=parts | {"total": _text(at - seconds(recovery.failed_time))})


def sentence(recovery: Recovery) -> str:
    """How long it took, part by part, for people."""
    parts = [(name.replace("_", " "), getattr(recovery, name)) for name in PARTS]
    told = ", ".join(f"{name} {float(took):.1f}" for name, took in parts if took is not None)
    total = float(recovery.total or 0)
    return f"generation {recovery.generation} trains again {total:.1f} s after {recovery.reason}: {told}"


def _text(spent: float) -> str:
    return f"{spent:.3f}"
