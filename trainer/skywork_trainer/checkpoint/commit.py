"""The moment a checkpoint begins to exist: history, manifest, retention; never over a newer generation."""

import logging

from skywork_trainer.checkpoint import CheckpointCorrupt, Superseded
from skywork_trainer.checkpoint.history import History, history_key
from skywork_trainer.checkpoint.manifest import Manifest, committed, manifest_key, prefix, read_manifest
from skywork_trainer.checkpoint.retention import retain
from skywork_trainer.config import Checkpoints
from skywork_trainer.curve import curve_key
from skywork_trainer.storage import StorageError, Store

_log = logging.getLogger(__name__)


def commit(store: Store, manifest: Manifest, history: History, keep: Checkpoints, *, curve: str = "") -> None:
    """Make the files that are stored a checkpoint, then remove the checkpoints that nobody keeps.

    Superseded when a newer generation has committed one; StorageError when the store fails or a file is not whole.
    """
    refuse_if_superseded(store, manifest.id)
    for file in manifest.files:
        _require_whole(store, manifest.id, file.name, file.size)
    # Before the manifest: a committed checkpoint always has its history, an extra history harms nobody.
    put_records(store, history, curve)
    _put_manifest(store, manifest)
    try:
        retain(store, keep, newest=manifest.id)
    except (StorageError, CheckpointCorrupt) as error:
        # The checkpoint is there. What was not removed now is found by the next one's retention.
        _log.warning("old checkpoints could not be removed: %s", error)


def put_records(store: Store, history: History, curve: str) -> None:
    """Store what happened since the checkpoint before: for the audit, and for whoever draws curves."""
    store.put(history_key(history.id), history.model_dump_json().encode())
    if curve:
        store.put(curve_key(history.id), curve.encode())


def refuse_if_superseded(store: Store, identity: str) -> None:
    """Raise Superseded when a newer generation, or a newer incarnation of the run, has committed a checkpoint."""
    ours = _world(identity)
    newer = [other for other in committed(store) if _world(other) > ours]
    if newer:
        raise Superseded(
            f"checkpoint {newer[-1]} was committed by a newer generation: {identity} is not committed, and this "
            "generation ends"
        )


def _world(identity: str) -> tuple[int, int]:
    incarnation, generation, _ = identity.split("-")
    return int(incarnation), int(generation)


def _require_whole(store: Store, identity: str, name: str, size: int) -> None:
    key = prefix(identity) + name
    try:
        found = store.size(key)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        found = -1
    if found != size:
        state = "is not there" if found < 0 else f"has {found} bytes"
        raise StorageError("Incomplete", f"{store.uri}/{key} {state}, {size} were uploaded", retryable=True)


def _put_manifest(store: Store, manifest: Manifest) -> None:
    try:
        store.put(manifest_key(manifest.id), manifest.model_dump_json().encode(), if_absent=True)
    except StorageError as error:
        # An attempt whose answer was lost, by this generation: no other writes under this name.
        if error.reason != "AlreadyExists" or read_manifest(store, manifest.id).files != manifest.files:
            raise
