"""Beginning with a checkpoint of another run: its weights, moments and step, and a future of one's own.

The other run's folder is only read: a fork is made while that run trains on, or by somebody who may not write there.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack

from skywork_trainer.checkpoint import CheckpointCorrupt, CheckpointMismatch
from skywork_trainer.checkpoint.describe import NoSuchCheckpoint, find
from skywork_trainer.checkpoint.files import FragmentReader
from skywork_trainer.checkpoint.manifest import Counters, Manifest
from skywork_trainer.checkpoint.notes import reading
from skywork_trainer.checkpoint.restore import other_future, other_past
from skywork_trainer.checkpoint.saver import DataIdentity
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig, StartFrom
from skywork_trainer.engine import Engine
from skywork_trainer.storage import Store, open_store

_log = logging.getLogger(__name__)


def fork(
    start: StartFrom, config: RunConfig, engine: Engine, world: World, *, data: Callable[[Manifest], DataIdentity]
) -> Manifest:
    """Fill the engine with the checkpoint that `start` names; return its manifest. Collective.

    Raises CheckpointMismatch where it is not there, cannot be read as it was written, or is of another model, tokenizer
    or batch. Another data order behind it is allowed, and told: only this run's plan says what comes next.
    """
    store = open_store(start.uri)
    found = b""
    if world.rank == 0:
        # One rank asks: all must mean the same one of several at that step.
        found = _named(store, start).model_dump_json().encode()
    manifest = Manifest.model_validate_json(world.broadcast_bytes(found))
    identity = data(manifest)
    different = other_future(manifest, config, identity)
    if different:
        raise CheckpointMismatch(
            f"startFrom: checkpoint {manifest.id} at {start.uri} does not fit this run: {'; '.join(different)} differ. "
            "Begin with it in a run of the same model, tokenizer and batch; `skywork checkpoints show` prints them"
        )
    changed = other_past(manifest, config, identity)
    if changed and world.rank == 0:
        _log.warning(
            "startFrom: %s differ from the run that made checkpoint %s: sequences that it has trained may come again",
            "; ".join(changed),
            manifest.id,
        )
    _load(store, manifest, engine, world)
    _log.info("starting from checkpoint %s at %s, behind step %d", manifest.id, start.uri, manifest.step)
    return manifest


def forked_counters(manifest: Manifest, start: StartFrom, *, stage_begins: bool) -> Counters:
    """Return what a run that begins with another's checkpoint goes on from: the losses, and nothing it has not done.

    Where `stage_begins` with it, the losses at its stage's start are still to be measured.
    """
    told = manifest.counters
    return Counters(
        train_loss=told.train_loss,
        validation=told.validation,
        stage_start_validation=() if stage_begins else told.stage_start_validation,
        validation_curve=told.validation_curve,
        initial_weights_uri=told.initial_weights_uri,
        forked_from=f"{start.uri.rstrip('/')}/checkpoints/{manifest.id}",
        forked_step=manifest.step,
    )


def _named(store: Store, start: StartFrom) -> Manifest:
    try:
        return find(store, str(start.step))
    except NoSuchCheckpoint as error:
        raise CheckpointMismatch(f"startFrom: {error}", reason="CheckpointMissing") from error
    except CheckpointCorrupt as error:
        raise CheckpointMismatch(f"startFrom: {error}", reason="CheckpointCorrupt") from error


def _load(store: Store, manifest: Manifest, engine: Engine, world: World) -> None:
    reader = FragmentReader(store, manifest)
    with ExitStack() as stack:
        stack.callback(reader.close)
        if world.rank == 0:
            stack.enter_context(reading(store, manifest.id))
        reader.expect([fragment.span for fragment in engine.fragments()])
        engine.load_fragments(reader, optimizer_step=manifest.optimizer_step)
        said = [text.decode() for text in world.gather_bytes((reader.corruption or "").encode()[:1000])]
    wrong = next((text for text in said if text), None)
    if wrong is not None:
        raise CheckpointMismatch(
            f"startFrom: checkpoint {manifest.id} at {store.uri} cannot be read as it was written: {wrong}",
            reason="CheckpointCorrupt",
        )
