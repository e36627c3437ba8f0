"""Saving: every rank's file, then the history, then the manifest that commits them, then retention."""

import logging
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel

from skywork_trainer.checkpoint.files import write_rank_file
from skywork_trainer.checkpoint.history import History, Runs, history_key
from skywork_trainer.checkpoint.manifest import (
    Counters,
    Manifest,
    Piece,
    RankFile,
    checkpoint_id,
    committed,
    manifest_key,
    prefix,
)
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Fragment
from skywork_trainer.storage import Store

_log = logging.getLogger(__name__)


class _Part(BaseModel):
    """What one rank tells rank 0 once its file is in the store."""

    file: RankFile
    pieces: tuple[Piece, ...]
    consumed: Runs
    substituted: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """What a checkpoint says of the data behind it."""

    tokenizer_sha256: str
    fingerprints: dict[str, str]
    past_hash: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's state between two steps, and what happened since the checkpoint `parent`."""

    step: int
    stage: str
    optimizer_step: int
    fragments: Sequence[Fragment]
    data: DataIdentity
    counters: Counters
    parent: str
    parent_step: int
    consumed: Runs
    losses: Sequence[float]
    substituted: Mapping[int, int] = field(default_factory=dict)
    """Window of its source that was read instead, by sequence."""


class Saver:
    """Commits checkpoints of one generation."""

    def __init__(self, store: Store, config: RunConfig, *, world: World, generation: int, scratch: Path) -> None:
        self._store, self._config, self._world = store, config, world
        self._generation, self._scratch = generation, scratch
        self._versions = {name: version(name) for name in ("torch", "deepspeed", "skywork")}
        self._versions["python"] = platform.python_version()

    def save(self, snapshot: Snapshot) -> Manifest:
        """Write and commit one checkpoint; collective. Returns once it is committed, on every rank."""
        identity = checkpoint_id(incarnation=self._config.incarnation, generation=self._generation, step=snapshot.step)
        part = self._write_own(identity, snapshot)
        parts = [_Part.model_validate_json(p) for p in self._world.gather_bytes(part.model_dump_json().encode())]
        manifest = self._manifest(identity, snapshot, parts)
        if self._world.rank == 0:
            history = History(
                id=identity,
                parent=snapshot.parent,
                first_step=snapshot.parent_step,
                last_step=snapshot.step,
                batch=self._config.global_batch_sequences,
                ranks=tuple(part.consumed for part in parts),
                substituted={n: window for part in parts for n, window in part.substituted.items()},
                losses=tuple(snapshot.losses),
            )
            # Before the manifest: a committed checkpoint always has its history, an extra history harms nobody.
            self._store.put(history_key(identity), history.model_dump_json().encode())
            self._store.put(manifest_key(identity), manifest.model_dump_json().encode())
            self._retain()
        # Nobody goes on, or exits with "saved", before the commit.
        self._world.broadcast_bytes(b"committed")
        return manifest

    def _write_own(self, identity: str, snapshot: Snapshot) -> _Part:
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="checkpoint-") as folder:
            path = Path(folder) / "rank.safetensors"
            file, pieces = write_rank_file(path, snapshot.fragments, file_index=self._world.rank)
            self._store.upload(path, prefix(identity) + file.name)
        return _Part(
            file=file, pieces=tuple(pieces), consumed=snapshot.consumed, substituted=dict(snapshot.substituted)
        )

    def _manifest(self, identity: str, snapshot: Snapshot, parts: list[_Part]) -> Manifest:
        config = self._config
        return Manifest(
            id=identity,
            parent=snapshot.parent,
            created=time.time(),
            generation=self._generation,
            stage=snapshot.stage,
            step=snapshot.step,
            tokens=snapshot.step * config.global_batch_tokens,
            optimizer_step=snapshot.optimizer_step,
            world=self._world.size,
            zero_stage=config.engine.zero_stage,
            model=config.model,
            model_hash=config.model_hash,
            tokenizer_sha256=snapshot.data.tokenizer_sha256,
            sequence_length=config.sequence_length,
            global_batch_sequences=config.global_batch_sequences,
            fingerprints=snapshot.data.fingerprints,
            past_hash=snapshot.data.past_hash,
            seed=config.seed,
            counters=snapshot.counters,
            versions=self._versions,
            files=tuple(part.file for part in parts),
            pieces=tuple(piece for part in parts for piece in part.pieces),
        )

    def _retain(self) -> None:
        """Remove all but the newest; what an interrupted save or removal left behind goes with them."""
        kept = committed(self._store)[-self._config.checkpoints.keep_last :]
        doomed = {key.split("/")[1] for key in self._store.list("checkpoints/")}
        for identity in sorted(identity for identity in doomed if identity < kept[0]):
            # The manifest first: readers treat a checkpoint without one as absent, so a crash half-way
            # leaves garbage for the next pass, never half a checkpoint that somebody loads.
            self._store.delete(manifest_key(identity))
            for key in self._store.list(prefix(identity)):
                self._store.delete(key)
            _log.info("removed checkpoint %s", identity)
