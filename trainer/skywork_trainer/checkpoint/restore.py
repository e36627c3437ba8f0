"""Restoring: the newest committed checkpoint that is of this run's making and can be read."""

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path

from skywork_trainer.checkpoint import CheckpointCorrupt, CheckpointMismatch
from skywork_trainer.checkpoint.bounds import MOST_MANIFEST_BYTES
from skywork_trainer.checkpoint.files import FragmentReader
from skywork_trainer.checkpoint.local import local_ids, read_local_manifest
from skywork_trainer.checkpoint.manifest import Manifest, committed, parse_id, parse_manifest, read_manifest
from skywork_trainer.checkpoint.notes import Quarantine, note_verified, quarantine, quarantined, reading
from skywork_trainer.checkpoint.returning import agreed_rollbacks
from skywork_trainer.checkpoint.saver import DataIdentity
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Engine
from skywork_trainer.guards import is_abandoned
from skywork_trainer.storage import Store

_log = logging.getLogger(__name__)


class Candidates:
    """Committed checkpoints, newest first, as rank 0 sees them: all ranks must try the same ones. Collective.

    Those that only the nodes keep (below `local`) are among them where every node has its part. Those of `before_step`
    and later are left out, unless there are no others.
    """

    def __init__(
        self,
        store: Store,
        world: World,
        *,
        local: Path | None = None,
        generation: int = 0,
        before_step: int | None = None,
    ) -> None:
        self._store, self._world, self._local, self._generation = store, world, local, generation
        own = local_ids(local) if local is not None else []
        everywhere = [set(json.loads(ids)) for ids in world.gather_bytes(json.dumps(own).encode())]
        local_only: set[str] = set.intersection(*everywhere)
        self.rollbacks = agreed_rollbacks(store, world)
        self._left: list[str] = []
        self.corrupt: dict[str, str] = {}
        """Why, by id, of those that were there but could not be read, now or by an earlier generation."""
        if world.rank == 0:
            durable = committed(store)
            self.corrupt = {note.id: note.reason for note in quarantined(store) if note.id in durable}
            local_only -= set(durable)
            sound = {*durable, *local_only} - self.corrupt.keys()
            left = sorted(i for i in sound if not is_abandoned(*parse_id(i), self.rollbacks))
            older = [i for i in left if before_step is None or parse_id(i)[1] < before_step]
            if left and not older:
                _log.warning("there is no checkpoint before step %s: the newest is tried once more", before_step)
            self._left = older or left
        self._local_only = set(json.loads(world.broadcast_bytes(json.dumps(sorted(local_only)).encode())))

    def next(self) -> Manifest | None:
        """Return the next manifest that can be read; None when there is none left. Collective."""
        found = b""
        while self._world.rank == 0 and self._left and not found:
            identity = self._left.pop()
            try:
                found = self._read_manifest(identity).model_dump_json().encode()
            except CheckpointCorrupt as error:
                self._pass_over(identity, str(error))
        found = self._world.broadcast_bytes(found)
        return Manifest.model_validate_json(found) if found else None

    def load(self, manifest: Manifest, engine: Engine) -> bool:
        """Fill the engine; False, on all ranks, when any rank found its part corrupt. Collective."""
        leads = self._world.rank == 0
        reader = FragmentReader(self._store, manifest, local=self._local)
        with ExitStack() as stack:
            stack.callback(reader.close)
            if leads and not self.is_local(manifest):
                stack.enter_context(reading(self._store, manifest.id))
            reader.expect([fragment.span for fragment in engine.fragments()])
            engine.load_fragments(reader, optimizer_step=manifest.optimizer_step)
            failures, from_nodes = self._world.sum([reader.corruption is not None, reader.local_bytes_read])
        if failures:
            # Every rank tells: rank 0, which takes the note, may have read its own part whole.
            said = [text.decode() for text in self._world.gather_bytes((reader.corruption or "").encode()[:1000])]
            self._pass_over(manifest.id, next(text for text in said if text))
        elif leads and not from_nodes:
            note_verified(self._store, manifest.id)
        if from_nodes:
            _log.info("%.0f MB of checkpoint %s came from the nodes' own disks", from_nodes / 1e6, manifest.id)
        return not failures

    def is_local(self, manifest: Manifest) -> bool:
        """Return whether only the nodes keep the checkpoint."""
        return manifest.id in self._local_only

    def _read_manifest(self, identity: str) -> Manifest:
        if identity not in self._local_only or self._local is None:
            return read_manifest(self._store, identity)
        try:
            return parse_manifest(identity, read_local_manifest(self._local, identity, MOST_MANIFEST_BYTES + 1))
        except OSError as error:
            raise CheckpointCorrupt(f"manifest of {identity} is gone from this node") from error

    def _pass_over(self, identity: str, why: str) -> None:
        if self._world.rank:
            return
        if identity in self._local_only:
            # Not damage: the node that had it was replaced, or its disk was cleared.
            _log.info("checkpoint %s is on the nodes only and not whole: %s", identity, why)
            return
        self.corrupt[identity] = why
        _log.error("checkpoint %s is corrupt, falling back to the one before it: %s", identity, why)
        quarantine(self._store, Quarantine(id=identity, reason=why, time=time.time(), generation=self._generation))


def check_compatible(manifest: Manifest, config: RunConfig, data: DataIdentity) -> None:
    """Raise CheckpointMismatch, naming all that differs, unless this run is the one that made the checkpoint."""
    differences = other_future(manifest, config, data) + other_past(manifest, config, data)
    if differences:
        raise CheckpointMismatch(
            f"checkpoint {manifest.id} at {config.checkpoints.uri} was made with another configuration: "
            f"{'; '.join(differences)} differ. Restore what was changed, or give this run a checkpoints.uri of its "
            "own; nothing was overwritten"
        )


def other_future(manifest: Manifest, config: RunConfig, data: DataIdentity) -> list[str]:
    """Return what no run could go on with that is not so here: the model, its tokenizer, what a step is."""
    differences = []
    if manifest.model_hash != config.model_hash:
        theirs, ours = manifest.model.model_dump(), config.model.model_dump()
        fields = [f"{name} was {theirs[name]}, is {ours[name]}" for name in ours if theirs[name] != ours[name]]
        differences.append(f"the model ({', '.join(fields) or 'its hash'})")
    if manifest.tokenizer_sha256 != data.tokenizer_sha256:
        differences.append(f"the tokenizer (was {manifest.tokenizer_sha256[:12]}, is {data.tokenizer_sha256[:12]})")
    return differences + _changed(manifest, config, "sequence_length", "global_batch_sequences")


def other_past(manifest: Manifest, config: RunConfig, data: DataIdentity) -> list[str]:
    """Return what decided the order of the data so far and is not so here."""
    differences = _changed(manifest, config, "seed")
    for source, fingerprint in manifest.fingerprints.items():
        if source in data.fingerprints and data.fingerprints[source] != fingerprint:
            differences.append(f"the shards of source {source!r}")
    known = differences or other_future(manifest, config, data)
    if not known and manifest.past_hash != data.past_hash:
        differences.append("the stages or mixtures trained so far")
    return differences


def _changed(manifest: Manifest, config: RunConfig, *names: str) -> list[str]:
    pairs = [(name, getattr(manifest, name), getattr(config, name)) for name in names]
    return [f"{name} (was {was}, is {now})" for name, was, now in pairs if was != now]
