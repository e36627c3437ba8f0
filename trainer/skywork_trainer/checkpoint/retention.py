"""Which checkpoints stay. What counts as kept is pure; what goes loses its manifest first."""

import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.manifest import committed, manifest_key, prefix, read_manifest
from skywork_trainer.checkpoint.notes import being_read, quarantined, verified
from skywork_trainer.config import Checkpoints
from skywork_trainer.storage import Store

_log = logging.getLogger(__name__)
_MOST_QUARANTINED = 2


@dataclass(frozen=True)
class Kept:
    """What the rules ask of one committed checkpoint."""

    id: str
    tokens: int = 0
    loss: float = math.inf
    """Mean validation loss over the domains; infinite where none was measured."""


def kept(
    committed: Sequence[Kept], keep: Checkpoints, *, corrupt: Collection[str] = (), held: Collection[str] = ()
) -> set[str]:
    """Return the ids that stay, of checkpoints given oldest first.

    Corrupt ones stay for examination, a few of them, and count for nothing else. `held` are those that a reader holds
    or that alone are known to be readable.
    """
    sound = [one for one in committed if one.id not in corrupt]
    stay = {one.id for one in sound[-keep.keep_last :]}
    stay |= set([one.id for one in committed if one.id in corrupt][-_MOST_QUARANTINED:])
    stay |= {one.id for one in sound if one.id in held}
    if keep.keep_every_tokens is not None:
        reached = 0
        for one in sound:
            if one.tokens // keep.keep_every_tokens > reached:
                reached = one.tokens // keep.keep_every_tokens
                stay.add(one.id)
    measured = [one for one in reversed(sound) if math.isfinite(one.loss)]
    best = sorted(measured, key=lambda one: one.loss)
    return stay | {one.id for one in best[: keep.keep_best]}


def retain(store: Store, keep: Checkpoints, *, newest: str) -> None:
    """Remove what nobody keeps, and what interrupted saves before `newest` left behind."""
    there = {key.split("/")[1] for key in store.list("checkpoints/")}
    ids = committed(store)
    corrupt = {note.id for note in quarantined(store)}
    readable = [identity for identity in verified(store) if identity in ids and identity not in corrupt]
    held = {*being_read(store, now=time.time()), *readable[-1:]}
    detailed = keep.keep_every_tokens is not None or keep.keep_best > 0
    entries = [_described(store, identity) if detailed else Kept(identity) for identity in ids]
    stay = kept(entries, keep, corrupt=corrupt, held=held)
    # Of the newest generation nothing is removed that is newer than its last commit: it may be in the making.
    for identity in sorted(identity for identity in there - stay if identity < newest):
        # The manifest first: readers treat a checkpoint without one as absent, so a crash half-way
        # leaves garbage for the next pass, never half a checkpoint that somebody loads.
        store.delete(manifest_key(identity))
        for key in store.list(prefix(identity)):
            store.delete(key)
        _log.info("removed checkpoint %s", identity)


_known: dict[tuple[str, str], Kept] = {}


def _described(store: Store, identity: str) -> Kept:
    if (store.uri, identity) not in _known:
        try:
            manifest = read_manifest(store, identity)
        except CheckpointCorrupt:
            return Kept(identity)
        losses = [domain.loss for domain in manifest.counters.validation]
        loss = math.fsum(losses) / len(losses) if losses else math.inf
        _known[store.uri, identity] = Kept(identity, manifest.tokens, loss)
    return _known[store.uri, identity]
