"""Returning to an earlier checkpoint: rank 0 decides and writes it down, all ranks end alike and go by it."""

import logging
import time

from pydantic import TypeAdapter

from skywork_trainer.checkpoint.manifest import committed, parse_id
from skywork_trainer.checkpoint.notes import quarantined
from skywork_trainer.checkpoint.rollbacks import read_rollbacks, rollback_key
from skywork_trainer.collectives import World
from skywork_trainer.config import Guards
from skywork_trainer.guards import Rollback, Spike, is_abandoned, plan_rollback
from skywork_trainer.storage import Store

_ROLLBACKS = TypeAdapter(tuple[Rollback, ...])
_log = logging.getLogger(__name__)


class LossSpike(Exception):
    """Training ends here because of a spike: to go on from before it, or for good after too many."""

    reason = "LossSpike"

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.message, self.retryable = message, retryable


def agreed_rollbacks(store: Store, world: World) -> tuple[Rollback, ...]:
    """Return the run's rollbacks as rank 0 sees them. Collective."""
    told = _ROLLBACKS.dump_json(read_rollbacks(store)) if world.rank == 0 else b""
    return _ROLLBACKS.validate_json(world.broadcast_bytes(told))


def roll_back(
    spike: Spike,
    guards: Guards,
    store: Store,
    world: World,
    *,
    stage: range,
    past: tuple[Rollback, ...],
    saved_by: tuple[int, int],
) -> None:
    """Decide on a rollback, write it down, raise LossSpike; return if there is nothing to go back to. Collective.

    `stage` are the steps of the stage that trains.
    """  # fmt: skip
    if len(past) >= guards.most_rollbacks:
        raise LossSpike(
            f"{spike}, and the run was rolled back {len(past)} times before (guards.rollback.max): look at the data "
            "around it, lower the learning rate, or raise the limit",
            retryable=False,
        )
    told = b""
    if world.rank == 0:
        planned = plan_rollback(
            spike, guards, saved_steps=_saved_steps(store, stage, past), stage_end=stage.stop, past=past,
            now=time.time(), saved_by=saved_by,
        )  # fmt: skip
        if planned is not None:
            store.put(rollback_key(planned.number), planned.model_dump_json().encode(), if_absent=True)
            told = planned.model_dump_json().encode()
    told = world.broadcast_bytes(told)
    if not told:
        _log.warning("%s; no checkpoint lies far enough before it to return to", spike)
        return
    decided = Rollback.model_validate_json(told)
    raise LossSpike(
        f"{spike}: training returns to step {decided.to_step} and leaves out steps {decided.skip.first} to "
        f"{decided.skip.last - 1} (rollback {decided.number} of at most {guards.most_rollbacks})",
        retryable=True,
    )


def _saved_steps(store: Store, stage: range, past: tuple[Rollback, ...]) -> list[int]:
    corrupt = {note.id for note in quarantined(store)}
    saved = [parse_id(identity) for identity in committed(store) if identity not in corrupt]
    steps = [step for saved_by, step in saved if not is_abandoned(saved_by, step, past)]
    # A run that has only begun can begin anew; a later stage cannot do without what came before.
    return [*steps, 0] if stage.start == 0 else steps
