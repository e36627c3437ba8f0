"""What the agent does next, as tables."""

from typing import Any

import pytest
from skywork_trainer.agent.policy import Do, View, decide
from skywork_trainer.config import AgentPhase, Membership, Role


def word(generation: int, role: Role = Role.TRAIN, **changes: Any) -> Membership:
    return Membership(generation=generation, role=role, nodes=1, master="10.0.0.1:29500", **changes)


def view(**changes: Any) -> View:
    fields: dict[str, Any] = {"membership": word(1), "generation": 1, "alive": 2, "warm": True}
    return View(**(fields | changes))


@pytest.mark.parametrize(
    ("seen", "do", "phase"),
    [
        pytest.param(
            view(membership=None, generation=0, alive=0), Do.WAIT, AgentPhase.STANDBY, id="no word yet: stand by"
        ),
        pytest.param(view(generation=0, alive=0, warm=False), Do.WAIT, AgentPhase.STANDBY, id="not warm: wait"),
        pytest.param(view(generation=0, alive=0), Do.START, AgentPhase.TRAINING, id="a first generation starts"),
        pytest.param(view(), Do.WAIT, AgentPhase.TRAINING, id="all train: leave them"),
        pytest.param(
            view(membership=word(0, Role.STANDBY)), Do.WAIT, AgentPhase.TRAINING, id="an older word changes nothing"
        ),
        pytest.param(view(alive=1, exits=(-9,)), Do.KILL, AgentPhase.FAILED, id="one was killed: end its siblings"),
        pytest.param(view(alive=0, exits=(-9, 1)), Do.WAIT, AgentPhase.FAILED, id="failed: wait for the operator"),
        pytest.param(
            view(alive=0, exits=(-9, 1), membership=word(2)), Do.START, AgentPhase.TRAINING, id="a new world: start"
        ),
        pytest.param(view(membership=word(2)), Do.KILL, AgentPhase.TRAINING, id="the old world is broken: end it"),
        pytest.param(
            view(membership=word(2, drain=True)), Do.DRAIN, AgentPhase.TRAINING, id="the old world is healthy: save"
        ),
        pytest.param(view(drain_deadline=5.0), Do.WAIT, AgentPhase.TRAINING, id="saving: wait"),
        pytest.param(view(drain_deadline=-5.0), Do.KILL, AgentPhase.TRAINING, id="saving takes too long: end it"),
        pytest.param(view(leaving=True), Do.DRAIN, AgentPhase.TRAINING, id="the pod is deleted: save"),
        pytest.param(
            view(membership=word(2, Role.LEAVE)), Do.DRAIN, AgentPhase.TRAINING, id="told to leave: save first"
        ),
        pytest.param(
            view(alive=0, exits=(75, 75)), Do.WAIT, AgentPhase.STANDBY, id="saved because a peer left: stand by"
        ),
        pytest.param(
            view(alive=0, exits=(-9, 1), membership=word(2, Role.STANDBY)),
            Do.WAIT,
            AgentPhase.STANDBY,
            id="failed, then made a spare: stand by",
        ),
        pytest.param(view(hung_until=5.0), Do.WAIT, AgentPhase.FAILED, id="a hang: peers' agents may still look"),
        pytest.param(view(hung_until=-5.0), Do.KILL, AgentPhase.FAILED, id="a hang that all have looked at: end it"),
        pytest.param(
            view(hung_until=5.0, membership=word(2)), Do.KILL, AgentPhase.FAILED, id="a hang, and a new world: end it"
        ),
        pytest.param(
            view(membership=word(2, Role.DONE)), Do.DRAIN, AgentPhase.TRAINING, id="trained elsewhere: let them leave"
        ),
        pytest.param(
            view(alive=1, exits=(-15,), drain_deadline=5.0),
            Do.WAIT,
            AgentPhase.TRAINING,
            id="SIGTERM ended one that had not begun: it left, and the others go on saving",
        ),
        pytest.param(view(alive=1, exits=(-15,)), Do.KILL, AgentPhase.FAILED, id="SIGTERM of somebody else: failed"),
        pytest.param(
            view(alive=0, exits=(-9, -9), stopped=True), Do.WAIT, AgentPhase.STANDBY, id="ended by us: no failure"
        ),
    ],
)
def test_next_step(seen: View, do: Do, phase: AgentPhase) -> None:
    step = decide(seen, 0.0)
    assert (step.do, step.phase) == (do, phase)


@pytest.mark.parametrize(
    ("seen", "code", "phase"),
    [
        pytest.param(view(alive=0, exits=(0, 0)), 0, AgentPhase.DONE, id="all done"),
        pytest.param(view(alive=0, exits=(64, 1)), 64, AgentPhase.FAILED, id="a wrong configuration is not retried"),
        pytest.param(view(alive=0, exits=(75, 75), leaving=True), 75, AgentPhase.LEFT, id="saved and left"),
        pytest.param(view(alive=0, generation=0, membership=None, leaving=True), 75, AgentPhase.LEFT, id="idle: leave"),
        pytest.param(view(alive=0, exits=(0, 0), leaving=True), 0, AgentPhase.DONE, id="done wins over leaving"),
        pytest.param(view(alive=0, membership=word(2, Role.LEAVE)), 75, AgentPhase.LEFT, id="told to leave"),
        pytest.param(
            view(alive=0, membership=word(2, Role.DONE)), 0, AgentPhase.DONE, id="trained while this pod stood by"
        ),
        pytest.param(
            view(alive=0, exits=(-9, 1), membership=word(2, Role.DONE)), 0, AgentPhase.DONE, id="failed at the very end"
        ),
        pytest.param(view(alive=1, undead=True), 1, AgentPhase.FAILED, id="a worker that cannot be killed"),
    ],
)
def test_exit_code(seen: View, code: int, phase: AgentPhase) -> None:
    step = decide(seen, 0.0)
    assert (step.do, step.exit_code, step.phase) == (Do.EXIT, code, phase)
