"""What the agent does next: a pure function of what it sees."""

from dataclasses import dataclass
from enum import StrEnum
from signal import SIGTERM

from skywork_trainer.config import EXIT_CONFIG, EXIT_DONE, EXIT_LEFT, AgentPhase, Membership, Role


class Do(StrEnum):
    """One action."""

    WAIT = "wait"
    START = "start"
    """Fork the workers of the membership's generation."""
    DRAIN = "drain"
    """Ask the workers to save and leave."""
    KILL = "kill"
    """End the workers at once."""
    EXIT = "exit"
    """End the agent."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the agent sees."""

    membership: Membership | None
    generation: int
    """Newest generation that was started here; 0 before the first."""
    alive: int
    """Workers that run."""
    exits: tuple[int, ...] = ()
    """Exit codes of the generation's workers that ended by themselves; a signal is its negative number."""
    stopped: bool = False
    """Workers were ended by us, so that their exits are no failures."""
    drain_deadline: float | None = None
    """When workers that were asked to leave are killed; None while they have not been asked."""
    leaving: bool = False
    """The pod is being deleted (SIGTERM)."""
    warm: bool = False
    """Workers can be forked."""
    hung_until: float | None = None
    """Workers hang, and are left as they are until then; None while they do not."""
    undead: bool = False
    """Workers have outlived SIGKILL for too long: they wait in the kernel, and this pod will not train again."""


@dataclass(frozen=True)
class Step:
    """An action, the phase to report, and the exit code where the action is to exit."""

    do: Do
    phase: AgentPhase
    exit_code: int | None = None


def decide(view: View, now: float) -> Step:
    """The next step."""
    if view.undead:
        return Step(Do.EXIT, AgentPhase.FAILED, 1)
    asked = view.drain_deadline is not None
    failed = not view.stopped and any(is_failure(code, asked=asked) for code in view.exits)
    if view.alive:
        return _with_workers(view, now, failed)
    if view.exits and not view.stopped:
        if all(code == EXIT_DONE for code in view.exits):
            return Step(Do.EXIT, AgentPhase.DONE, EXIT_DONE)
        if EXIT_CONFIG in view.exits:
            return Step(Do.EXIT, AgentPhase.FAILED, EXIT_CONFIG)
    word = view.membership
    if word is not None and word.role is Role.DONE and _newer(view):
        return Step(Do.EXIT, AgentPhase.DONE, EXIT_DONE)
    if view.leaving or (word is not None and word.role is Role.LEAVE):
        return Step(Do.EXIT, AgentPhase.LEFT, EXIT_LEFT)
    if _newer(view) and word is not None and word.role is Role.TRAIN and view.warm:
        return Step(Do.START, AgentPhase.TRAINING)
    if word is not None and word.role is Role.STANDBY and _newer(view):
        failed = False  # the operator has moved on: what is left is a good spare
    return Step(Do.WAIT, AgentPhase.FAILED if failed else AgentPhase.STANDBY)


def is_failure(code: int, *, asked: bool) -> bool:
    """Return whether a worker that ended with `code` failed; `asked` says that it had been sent SIGTERM.

    SIGTERM kills a worker that has not come to install its handler yet: it has trained nothing, so it just left.
    """
    return code not in (EXIT_DONE, EXIT_LEFT) and not (asked and code == -SIGTERM)


def _with_workers(view: View, now: float, failed: bool) -> Step:
    if failed:
        # A world with a hole in it never steps again: its other workers only wait for a collective's time-out.
        return Step(Do.KILL, AgentPhase.FAILED)
    if view.hung_until is not None:
        # One who was asked to leave will not come to it; and a new world must not wait.
        over = now >= view.hung_until or view.leaving or _newer(view)
        return Step(Do.KILL if over else Do.WAIT, AgentPhase.FAILED)
    if view.drain_deadline is not None:
        return Step(Do.KILL if now >= view.drain_deadline else Do.WAIT, AgentPhase.TRAINING)
    word = view.membership
    if view.leaving:
        return Step(Do.DRAIN, AgentPhase.TRAINING)
    if word is not None and _newer(view):
        return Step(Do.DRAIN if word.drain or word.role in (Role.LEAVE, Role.DONE) else Do.KILL, AgentPhase.TRAINING)
    return Step(Do.WAIT, AgentPhase.TRAINING)


def _newer(view: View) -> bool:
    return view.membership is not None and view.membership.generation > view.generation
