"""Small objects beside the checkpoints that say something of one: corrupt, known to be readable, being read.

quarantine/<id>.json           why it cannot be read; its files stay as they are
verified/<id>                  all ranks of some world have read all they needed of it
reading/<id>/<until>-<random>  somebody reads it, at the latest until then (Unix seconds)
"""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from skywork_trainer.checkpoint.manifest import ID
from skywork_trainer.storage import StorageError, Store

_log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 16
READING_SECONDS = 3600.0


class Quarantine(BaseModel):
    """Why a checkpoint is passed over; delete the note to have it tried again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    reason: str
    time: float = 0.0
    """Unix seconds."""
    generation: int = 0
    """Generation that found it."""


def quarantine(store: Store, note: Quarantine) -> None:
    """Have every later reader pass the checkpoint over; a store that refuses the note is only logged."""
    _put(store, f"quarantine/{note.id}.json", note.model_dump_json().encode())


def quarantined(store: Store) -> list[Quarantine]:
    """Return all notes, oldest checkpoint first; one that cannot be read still counts."""
    found = []
    for key in store.list("quarantine/"):
        identity = key.removeprefix("quarantine/").removesuffix(".json")
        if not ID.fullmatch(identity):
            continue
        note = Quarantine(id=identity, reason="noted as corrupt")
        with suppress(ValidationError):
            said = Quarantine.model_validate_json(store.get_range(key, 0, _MOST_BYTES))
            note = said.model_copy(update={"id": identity, "reason": said.reason[:1000]})
        found.append(note)
    return found


def note_verified(store: Store, identity: str) -> None:
    """Note that the checkpoint was read and is what was written; the newest such one is never removed."""
    for older in verified(store):
        if older < identity:
            with suppress(StorageError):
                store.delete(f"verified/{older}")
    _put(store, f"verified/{identity}", b"")


def verified(store: Store) -> list[str]:
    """Return the ids noted as readable, oldest first."""
    ids = (key.removeprefix("verified/") for key in store.list("verified/"))
    return sorted(identity for identity in ids if ID.fullmatch(identity))


@contextmanager
def reading(store: Store, identity: str) -> Iterator[None]:
    """Keep retention from removing the checkpoint while the block runs, for an hour at most."""
    key = f"reading/{identity}/{int(time.time() + READING_SECONDS)}-{uuid.uuid4().hex[:8]}"
    _put(store, key, b"")
    try:
        yield
    finally:
        with suppress(StorageError):
            store.delete(key)


def being_read(store: Store, *, now: float) -> set[str]:
    """Return the ids that somebody reads; removes notes of readers that died long ago."""
    found = set()
    for key in store.list("reading/"):
        _, identity, until = (*key.split("/"), "", "")[:3]
        seconds = until.partition("-")[0]
        if seconds.isdecimal() and now < int(seconds):
            found.add(identity)
        else:
            store.delete(key)
    return found


def _put(store: Store, key: str, content: bytes) -> None:
    try:
        store.put(key, content)
    except StorageError as error:
        # Nothing that is noted is needed to go on, and somebody may read with the right to read only.
        _log.warning("%s could not be noted: %s", key, error)
