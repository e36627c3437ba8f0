"""Restoring: the newest committed checkpoint that is of this run's making and can be read."""

import logging

from skywork_trainer.checkpoint import CheckpointCorrupt, CheckpointMismatch
from skywork_trainer.checkpoint.files import FragmentReader
from skywork_trainer.checkpoint.manifest import Manifest, committed, read_manifest
from skywork_trainer.checkpoint.saver import DataIdentity
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Engine
from skywork_trainer.storage import Store

_log = logging.getLogger(__name__)


class Candidates:
    """Committed checkpoints, newest first, as rank 0 sees them: all ranks must try the same ones."""

    def __init__(self, store: Store, world: World) -> None:
        self._store, self._world = store, world
        self._left = committed(store) if world.rank == 0 else []
        self.corrupt: list[str] = []
        """Ids that were there but could not be read."""

    def next(self) -> Manifest | None:
        """Return the next manifest that can be read; None when there is none left. Collective."""
        found = b""
        while self._world.rank == 0 and self._left and not found:
            identity = self._left.pop()
            try:
                found = read_manifest(self._store, identity).model_dump_json().encode()
            except CheckpointCorrupt as error:
                self.skip(identity, str(error))
        found = self._world.broadcast_bytes(found)
        return Manifest.model_validate_json(found) if found else None

    def load(self, manifest: Manifest, engine: Engine) -> bool:
        """Fill the engine; False, on all ranks, when any rank found its part corrupt. Collective."""
        reader = FragmentReader(self._store, manifest)
        engine.load_fragments(reader, optimizer_step=manifest.optimizer_step)
        (failures,) = self._world.sum([reader.corruption is not None])
        if failures:
            self.skip(manifest.id, reader.corruption or "another rank found its part corrupt")
        return not failures

    def skip(self, identity: str, why: str) -> None:
        """Note a checkpoint that cannot be used, and say so."""
        self.corrupt.append(identity)
        _log.error("checkpoint %s is corrupt, falling back to the one before it: %s", identity, why)


def check_compatible(manifest: Manifest, config: RunConfig, data: DataIdentity) -> None:
    """Raise CheckpointMismatch, naming all that differs, unless this run is the one that made the checkpoint."""
    differences = []
    if manifest.model_hash != config.model_hash:
        theirs, ours = manifest.model.model_dump(), config.model.model_dump()
        fields = [f"{name} was {theirs[name]}, is {ours[name]}" for name in ours if theirs[name] != ours[name]]
        differences.append(f"the model ({', '.join(fields) or 'its hash'})")
    if manifest.tokenizer_sha256 != data.tokenizer_sha256:
        differences.append(f"the tokenizer (was {manifest.tokenizer_sha256[:12]}, is {data.tokenizer_sha256[:12]})")
    for name in ("sequence_length", "global_batch_sequences", "seed"):
        if getattr(manifest, name) != getattr(config, name):
            differences.append(f"{name} (was {getattr(manifest, name)}, is {getattr(config, name)})")
    for source, fingerprint in manifest.fingerprints.items():
        if source in data.fingerprints and data.fingerprints[source] != fingerprint:
            differences.append(f"the shards of source {source!r}")
    if not differences and manifest.past_hash != data.past_hash:
        differences.append("the stages or mixtures trained so far")
    if differences:
        raise CheckpointMismatch(
            f"checkpoint {manifest.id} at {config.checkpoints.uri} was made with another configuration: "
            f"{'; '.join(differences)} differ. Restore what was changed, or give this run a checkpoints.uri of its "
            "own; nothing was overwritten"
        )
