"""Saving: a copy of every rank's state to host memory, then all else beside the training that goes on.

    begin    each rank copies, and has its file hashed and stored
    advance  when every rank says it is stored, the ranks tell each other their parts; rank 0 has them committed
    advance  when rank 0 says it is committed, it is so for all

What ranks say travels with the sum that every step makes anyway (`votes`), so all see the same at the same step and
none ever waits for another's upload, but in `finish`.
"""

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from skywork_trainer import curve
from skywork_trainer.checkpoint import Superseded
from skywork_trainer.checkpoint.handing import Beside, Inline, Uploader
from skywork_trainer.checkpoint.history import History, Runs
from skywork_trainer.checkpoint.hostcopy import HostCopy
from skywork_trainer.checkpoint.layout import Layout, file_name, lay_out
from skywork_trainer.checkpoint.manifest import Counters, Manifest, RankFile, checkpoint_id
from skywork_trainer.checkpoint.orders import Answer, Commit, Part, Trouble, WriteFile, assembled
from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.curve import Record
from skywork_trainer.engine import Fragment
from skywork_trainer.storage import StorageError, Store

_log = logging.getLogger(__name__)
BLOCK_BYTES = 8 << 20
_LISTEN_SECONDS = 0.5
"""Between two collectives of ranks that wait: far below any collective's time-out, however long an upload takes."""


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
    records: Sequence[Record] = ()
    """For the curve; rank 0's count."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is committed."""

    id: str
    step: int
    created: float
    seconds: float
    """From the copy to the commit."""
    stall_seconds: float
    """How long this rank's training stood still for the copy."""
    size_bytes: int
    """Of all ranks' files."""
    durable: bool
    """Whether it is in the object store, and not on the nodes alone."""


@dataclass(frozen=True)
class NotSaved:
    """A save that came to nothing; training goes on, and the next one covers its steps."""

    id: str
    trouble: Trouble


@dataclass
class _Flight:
    """A save between its copy and its commit."""

    draft: Manifest
    history: History
    curve: str
    own: Part
    """This rank's, still without hashes."""
    durable: bool
    uploader: Uploader
    began: float
    stall_seconds: float
    committing: Commit | None = None


class Saver:
    """Saves of one generation, one at a time; every method but `votes` is collective."""

    def __init__(self, store: Store, config: RunConfig, *, world: World, generation: int, local: Path) -> None:
        self._store, self._config, self._world = store, config, world
        self._generation, self._local = generation, local
        self._versions = {name: version(name) for name in ("torch", "deepspeed", "skywork")}
        self._versions["python"] = platform.python_version()
        self._copy: HostCopy | None = None
        self._beside: Beside | None = None
        self._flight: _Flight | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not over."""
        return self._flight is not None

    def save(self, snapshot: Snapshot) -> Manifest:
        """Commit one checkpoint; returns once it is committed, on every rank. Nothing may be in flight.

        Raises StorageError, or Superseded, on all ranks when it cannot be.
        """
        self.begin(snapshot, background=False)
        flight = self._flight
        outcome = self.finish()
        if isinstance(outcome, NotSaved):
            trouble = outcome.trouble
            raise StorageError(trouble.reason, trouble.message, retryable=trouble.retryable)
        assert flight is not None and flight.committing is not None
        return assembled(flight.committing)[0]

    def prepare(self, fragments: Sequence[Fragment]) -> None:
        """Make room for the copies to come, so that the first save need not. Waits for nobody."""
        self._room_for(self._laid_out(fragments))

    def begin(self, snapshot: Snapshot, *, durable: bool = True, background: bool = True) -> float:
        """Copy the state and start a save of it; returns how long the copy took, in seconds.

        Without `durable` it is kept on the nodes' disks only. Without `background` nobody trains meanwhile: no process
        is started for it.
        """
        assert self._flight is None, "one save at a time"
        began = time.monotonic()
        fragments = [fragment for fragment in snapshot.fragments if fragment.span.length]
        layout = self._laid_out(fragments)
        copy = self._room_for(layout)
        copy.fill(layout, fragments)
        identity = checkpoint_id(incarnation=self._config.incarnation, generation=self._generation, step=snapshot.step)
        uploader = self._uploader(copy, background)
        stall = time.monotonic() - began
        self._flight = _Flight(
            draft=self._draft(identity, snapshot),
            history=self._history(identity, snapshot),
            curve=self._curve(identity, snapshot) if self._world.rank == 0 else "",
            own=_own_part(layout, snapshot, self._world.rank),
            durable=durable,
            uploader=uploader,
            began=began,
            stall_seconds=stall,
        )
        uploader.send(
            WriteFile(
                id=identity,
                name=file_name(self._world.rank),
                fd=copy.fd,
                size=layout.size,
                block_bytes=BLOCK_BYTES,
                durable=durable,
                local_keep=self._config.checkpoints.local_keep,
            )
        )
        return stall

    def votes(self) -> list[float]:
        """Return what this rank adds to the sum that `advance` is given; waits for nothing."""
        return self._votes(0.0)

    def advance(self, votes: Sequence[float]) -> Saved | NotSaved | None:
        """Take the save in flight one step on, given the sum of all ranks' votes; return what became of it, once.

        Raises Superseded, or a StorageError that a retry cannot help, on all ranks.
        """
        flight, (over, failed) = self._flight, votes
        if flight is None:
            return None
        if over < (self._world.size if flight.committing is None or not flight.durable else 1):
            return None
        if failed:
            # Only now that every rank has its answer: nobody waits for a slower one's.
            return self._give_up(flight)
        if flight.committing is None:
            self._commit(flight)
            return None
        self._flight = None
        return Saved(
            id=flight.draft.id,
            step=flight.draft.step,
            created=flight.draft.created,
            seconds=time.monotonic() - flight.began,
            stall_seconds=flight.stall_seconds,
            size_bytes=sum(part.file.size for part in flight.committing.parts),
            durable=flight.durable,
        )

    def finish(self) -> Saved | NotSaved | None:
        """Wait until no save is in flight; return what became of it, None when there was none."""
        while self._flight is not None:
            outcome = self.advance(self._world.sum(self._votes(_LISTEN_SECONDS)))
            if outcome is not None:
                return outcome
        return None

    def close(self) -> None:
        """End the process beside this one; a save in flight comes to nothing."""
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def _votes(self, seconds: float) -> list[float]:
        flight = self._flight
        if flight is None or (flight.committing is not None and flight.durable and self._world.rank):
            return [0.0, 0.0]
        answer = flight.uploader.answer(seconds)
        return [answer is not None, answer is not None and answer.trouble is not None]

    def _laid_out(self, fragments: Sequence[Fragment]) -> Layout:
        spans = [fragment.span for fragment in fragments if fragment.span.length]
        return lay_out(spans, file_index=self._world.rank)

    def _room_for(self, layout: Layout) -> HostCopy:
        if self._copy is not None and self._copy.size != layout.size:
            self.close()  # it has the old memory mapped
            self._copy.close()
            self._copy = None
        if self._copy is None:
            self._copy = HostCopy(layout.size, pinned=self._world.device.type == "cuda")
        return self._copy

    def _uploader(self, copy: HostCopy, background: bool) -> Uploader:
        if self._beside is not None and not self._beside.alive:
            self.close()
        if self._beside is None and background:
            self._beside = Beside(self._store, self._local, copy.fd)
        return self._beside or Inline(self._store, self._local)

    def _commit(self, flight: _Flight) -> None:
        answer = flight.uploader.answer(0.0) or Answer()
        file = flight.own.file.model_copy(update={"sha256": answer.sha256})
        own = flight.own.model_copy(update={"file": file})
        gathered = self._world.gather_bytes(own.model_dump_json().encode())
        flight.committing = Commit(
            draft=flight.draft,
            history=flight.history,
            curve=flight.curve,
            parts=tuple(Part.model_validate_json(part) for part in gathered),
            durable=flight.durable,
            leads=self._world.rank == 0,
            keep=self._config.checkpoints,
        )
        if self._world.rank == 0 or not flight.durable:
            flight.uploader.send(flight.committing)

    def _give_up(self, flight: _Flight) -> NotSaved:
        self._flight = None
        answer = flight.uploader.answer(0.0)
        own = answer.trouble.model_dump_json() if answer is not None and answer.trouble is not None else ""
        said = self._world.gather_bytes(own.encode())
        trouble = next(Trouble.model_validate_json(one) for one in said if one)
        if trouble.superseded:
            raise Superseded(trouble.message)
        if not trouble.retryable:
            raise StorageError(trouble.reason, trouble.message)
        _log.error("checkpoint %s was not saved: %s: %s", flight.draft.id, trouble.reason, trouble.message)
        return NotSaved(flight.draft.id, trouble)

    def _draft(self, identity: str, snapshot: Snapshot) -> Manifest:
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
            files=(),
            pieces=(),
        )

    def _history(self, identity: str, snapshot: Snapshot) -> History:
        return History(
            id=identity,
            parent=snapshot.parent,
            first_step=snapshot.parent_step,
            last_step=snapshot.step,
            batch=self._config.global_batch_sequences,
            ranks=(),
            losses=tuple(snapshot.losses),
        )

    def _curve(self, identity: str, snapshot: Snapshot) -> str:
        part = curve.Part(
            id=identity,
            parent=snapshot.parent,
            first_step=snapshot.parent_step,
            last_step=snapshot.step,
            global_batch_tokens=self._config.global_batch_tokens,
            run=self._config.run,
            forked_from="" if snapshot.parent else snapshot.counters.forked_from,
        )
        return curve.encode([part, *snapshot.records]).decode()


def _own_part(layout: Layout, snapshot: Snapshot, rank: int) -> Part:
    return Part(
        file=RankFile(name=file_name(rank), size=layout.size, block_bytes=BLOCK_BYTES, sha256=()),
        pieces=layout.pieces,
        consumed=snapshot.consumed,
        substituted=dict(snapshot.substituted),
    )
