"""Where a run's time went: each generation's own account of it, folded into the sums of the run.

A generation says how many seconds its rank 0 has spent in each state since it began; what it said last is kept beside
the sums, so that whoever reads the status next counts on from there. What nobody said is idle: the rest of the time.

Steps that a crash or a rollback took back cost as much again as they had taken on average. That much of the training
that follows counts as lost, so that no sum but idle's ever falls and all of them can be counters.
"""

import math
from collections.abc import Mapping

from skywork_trainer.config import AgentStatus, Progress, Section, Spent

from skywork_operator.api.status import Heard, SkyworkRunStatus, StateSeconds, TimeSpent
from skywork_operator.times import seconds

SAID = tuple(state for state in Spent if state not in (Spent.IDLE, Spent.LOST))
"""States that a generation tells of."""
_FIELDS = {state: state.value for state in Spent} | {Spent.DATA_WAIT: "data_wait", Spent.VALIDATE: "validate_"}
"""Of TimeSpent."""


def wall_seconds(status: SkyworkRunStatus, now: float) -> float:
    """Time from the first stage's start to the run's end, or to `now`; 0 before it has started."""
    if status.start_time is None:
        return 0.0
    end = seconds(status.completion_time) if status.completion_time is not None else now
    return max(end - seconds(status.start_time), 0.0)


def heard(time: TimeSpent | None, words: AgentStatus, wall: float) -> TimeSpent | None:
    """The sums with what a generation's rank 0 says counted in; what an older one says comes too late.

    All states but idle never sum to more than `wall`, whatever is said.
    """
    progress, known = words.progress, (time or TimeSpent()).heard
    if progress is None or not progress.spent or words.generation < known.generation:
        return time
    fresh = words.generation > known.generation
    counted = {} if fresh else {entry.state: float(entry.seconds) for entry in known.spent}
    said = {state: max(_clean(progress.spent, state), counted.get(state, 0.0)) for state in SAID}
    grown = {state: said[state] - counted.get(state, 0.0) for state in SAID}
    sums = by_state(time or TimeSpent())
    room = max(wall - sum(value for state, value in sums.items() if state is not Spent.IDLE), 0.0)
    fits = min(room / total, 1.0) if (total := sum(grown.values())) > 0 else 1.0
    following = _following(known, progress, said[Spent.TRAIN], resumed=known.resumed and not fresh)
    again = min(float(following.owed), grown[Spent.TRAIN])
    for state in SAID:
        sums[state] += fits * (grown[state] - (again if state is Spent.TRAIN else 0.0))
    sums[Spent.LOST] += fits * again
    following = following.model_copy(
        update={
            "generation": words.generation,
            "spent": [StateSeconds(state=state, seconds=_text(said[state])) for state in SAID],
            "owed": _text(float(following.owed) - again),
        }
    )
    return _with(time or TimeSpent(), sums, following)


def until(time: TimeSpent, wall: float) -> TimeSpent:
    """The sums with idle as the rest of `wall`."""
    sums = by_state(time)
    busy = sum(value for state, value in sums.items() if state is not Spent.IDLE)
    return _with(time, sums | {Spent.IDLE: max(wall - busy, 0.0)}, time.heard)


def by_state(time: TimeSpent) -> dict[Spent, float]:
    """Seconds by state."""
    return {state: float(getattr(time, _FIELDS[state])) for state in Spent}


def ratio(time: TimeSpent) -> float | None:
    """Part of the time in which steps were trained that count; None before any generation has told of its time."""
    sums = by_state(time)
    total = sum(sums.values())
    return sums[Spent.TRAIN] / total if time.heard.generation and total > 0 else None


def _following(known: Heard, progress: Progress, train: float, *, resumed: bool) -> Heard:
    """What is known of the run's steps after a word of rank 0, whose generation has trained for `train` seconds."""
    if progress.restored_time <= 0 and progress.section in (Section.INIT, Section.RESTORE):
        return known.model_copy(update={"resumed": resumed})
    step, owed, pace = known.step, float(known.owed), float(known.seconds_per_step)
    if not resumed:
        owed += max(step - progress.first_step, 0) * pace
        step = progress.first_step
    if progress.step > progress.first_step and train > 0:
        pace = train / (progress.step - progress.first_step)
    return known.model_copy(
        update={
            "resumed": True,
            "step": max(step, progress.step),
            "owed": _text(owed),
            "seconds_per_step": f"{pace:.6g}",
        }
    )


def _clean(spent: Mapping[str, float], state: Spent) -> float:
    said = spent.get(state, 0.0)
    return round(said, 3) if math.isfinite(said) and said > 0 else 0.0


def _with(time: TimeSpent, sums: Mapping[Spent, float], heard: Heard) -> TimeSpent:
    return time.model_copy(update={_FIELDS[state]: _text(sums[state]) for state in Spent} | {"heard": heard})


def _text(spent: float) -> str:
    return f"{max(spent, 0.0):.3f}"
