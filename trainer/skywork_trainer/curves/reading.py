"""From the newest checkpoint back to the first step, through rollbacks, crashes and forks.

A part's parent has a smaller id, so one pass over the sorted ids, greatest first, meets the chain in its order; what
lies between its links was trained and taken back.
"""

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from pydantic import ValidationError

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.history import History, history_key
from skywork_trainer.checkpoint.manifest import ID, committed, parse_id, read_manifest
from skywork_trainer.checkpoint.notes import quarantined
from skywork_trainer.checkpoint.rollbacks import read_rollbacks
from skywork_trainer.curve import (
    EventRecord,
    GenerationRecord,
    MixtureRecord,
    Part,
    Record,
    StepRecord,
    TimeRecord,
    ValidationRecord,
    curve_key,
    decode,
)
from skywork_trainer.curves.ahead import read_ahead
from skywork_trainer.curves.run import Curve, Fork, Steps, Told, columns, joined, spans
from skywork_trainer.guards import Rollback, is_abandoned, is_skipped
from skywork_trainer.storage import StorageError, Store, open_store

_READERS = 32
_MOST_FORKS = 100
_KEY = re.compile(r"^(?:curves/|history/)([^/]+)\.jsonl?$")
_FORKED = re.compile(r"^(.+)/checkpoints/([^/]+)/?$")


class NoCurve(Exception):
    """There is nothing of a run at that place."""


@dataclass
class _Gathered:
    """What the walk has met, newest first."""

    steps: list[Steps] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)
    validations: list[ValidationRecord] = field(default_factory=list)
    mixtures: list[MixtureRecord] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run: str = ""
    global_batch_tokens: int = 0
    limit: int | None = None
    """Step that the next older part ends with."""
    from_history: list[tuple[int, int]] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    """Of all folders: what they left out is missing from nowhere."""


@dataclass(frozen=True)
class _Link:
    """One step of the walk back."""

    part: Part
    records: tuple[Record, ...]


def read_curve(store: Store, *, opened: Callable[[str], Store] = open_store) -> Curve:
    """Return the run whose checkpoints lie in the store, as it counts.

    NoCurve when nothing of a run is there, StorageError when the store fails. A folder that the run was forked from
    and that cannot be read is told of in the notes.
    """
    rollbacks = read_rollbacks(store)
    tip, notes = _tip(store, rollbacks)
    gathered = _Gathered(notes=notes, rollbacks=list(rollbacks))
    with ThreadPoolExecutor(_READERS, thread_name_prefix="curves") as pool:
        origin = _walk(store, tip, gathered, pool, own=True)
        seen = {(store.uri, tip)}
        while origin is not None and len(seen) < _MOST_FORKS:
            matched = _FORKED.match(origin)
            if matched is None or (matched[1], matched[2]) in seen:
                gathered.notes.append(f"the run began with {origin}, which is no checkpoint that could be followed")
                break
            seen.add((matched[1], matched[2]))
            gathered.forks.append(Fork(gathered.limit or 0, origin))
            try:
                other = opened(matched[1])
                gathered.rollbacks.extend(read_rollbacks(other))
                origin = _walk(other, matched[2], gathered, pool, own=False)
            except StorageError as error:
                gathered.notes.append(
                    f"steps up to {gathered.limit or 0:,} are left out: they were trained by the run at {matched[1]}, "
                    f"which cannot be read: {error.reason}: {error.message}"
                )
                break
    return _curve(store, tip, gathered, rollbacks)


def _tip(store: Store, rollbacks: Sequence[Rollback]) -> tuple[str, list[str]]:
    """Return the checkpoint that the run would go on from."""
    durable = committed(store)
    corrupt = {note.id for note in quarantined(store)} if durable else set()
    counting = [i for i in durable if i not in corrupt and not is_abandoned(*parse_id(i), rollbacks)]
    if counting:
        return counting[-1], []
    if durable:
        return durable[-1], ["every checkpoint is corrupt or was rolled back: the newest is shown all the same"]
    recorded = _ids(store, "curves/") or _ids(store, "history/")
    if not recorded:
        raise NoCurve(
            f"{store.uri} holds no checkpoint and no curve: either the run has not saved yet, or this is not the "
            "folder of its checkpoints as this machine sees it"
        )
    return recorded[-1], ["no checkpoint is left there: the newest record is taken for the end of the run"]


def _ids(store: Store, prefix: str) -> list[str]:
    found = (_KEY.match(key) for key in store.list(prefix))
    return sorted(match[1] for match in found if match and ID.fullmatch(match[1]))


def _walk(store: Store, tip: str, gathered: _Gathered, pool: Executor, *, own: bool) -> str | None:
    """Take in the chain behind `tip`; return the URI of the other run's checkpoint that it began with, if it did."""
    ids = [identity for identity in _ids(store, "curves/") if identity <= tip]
    expected, origin = tip, ""
    for key, content in read_ahead(store, [curve_key(i) for i in reversed(ids)], pool):
        identity = key.removeprefix("curves/").removesuffix(".jsonl")
        link = _link(store, identity, content, gathered)
        if link is None:
            continue
        if expected > identity:
            expected = _through_history(store, expected, identity, gathered, pool)
        counted = identity == expected
        if counted or own:
            _tell(store, identity, link.records, gathered, counted=counted)
        if counted:
            _count(link, gathered)
            expected, origin = link.part.parent, link.part.forked_from
            if not expected and not own:
                break
    if expected:
        expected = _through_history(store, expected, "", gathered, pool)
        if not expected and gathered.limit:
            origin = _began_with(store, tip)
    if expected and gathered.limit:
        gathered.notes.append(f"steps up to {gathered.limit:,} are left out: {store.uri} has no record of {expected}")
    return origin or None


def _link(store: Store, identity: str, content: bytes | None, gathered: _Gathered) -> _Link | None:
    if content is None:
        return None
    try:
        records = tuple(decode(content))
        part = records[0] if records else None
        if not isinstance(part, Part) or part.id != identity:
            raise ValueError("its first line does not say that it is this part")
    except ValueError as error:
        gathered.notes.append(f"{store.uri}/{curve_key(identity)} cannot be read and is passed over: {error}")
        return None
    return _Link(part, records)


def _count(link: _Link, gathered: _Gathered) -> None:
    part = link.part
    last = part.last_step if gathered.limit is None else min(part.last_step, gathered.limit)
    steps: dict[int, StepRecord] = {}
    validations, mixtures = [], []
    for record in link.records:
        if isinstance(record, StepRecord) and part.first_step < record.step <= last:
            steps[record.step] = record
        elif isinstance(record, ValidationRecord) and record.step <= last:
            validations.append(record)
        elif isinstance(record, MixtureRecord) and record.step <= last:
            mixtures.append(record)
    gathered.steps.append(columns([steps[step] for step in sorted(steps)], gathered.stages))
    gathered.validations.extend(reversed(validations))
    gathered.mixtures.extend(reversed(mixtures))
    gathered.run = gathered.run or part.run
    gathered.global_batch_tokens = gathered.global_batch_tokens or part.global_batch_tokens
    gathered.limit = min(part.first_step, last)


def _tell(store: Store, identity: str, records: tuple[Record, ...], gathered: _Gathered, *, counted: bool) -> None:
    (incarnation, _), _ = parse_id(identity)
    gathered.told.extend(
        Told(store.uri, incarnation, counted, record)
        for record in records
        if isinstance(record, GenerationRecord | TimeRecord | EventRecord)
    )


def _through_history(store: Store, expected: str, until: str, gathered: _Gathered, pool: Executor) -> str:
    """Take in the losses of checkpoints without a part, down to the first that is no newer than `until`."""
    for identity, history in _histories(store, expected, pool):
        if identity > expected:
            continue
        if identity < expected or history is None:
            break
        last = min(history.last_step, gathered.limit if gathered.limit is not None else history.last_step)
        count = max(last - history.first_step, 0)
        unknown = np.full(count, np.nan)
        losses = np.array(history.losses[:count], dtype=np.float64)
        gathered.steps.append(
            Steps(
                step=np.arange(history.first_step + 1, history.first_step + 1 + len(losses), dtype=np.int64),
                stage=np.full(len(losses), gathered.stages.setdefault("", len(gathered.stages)), dtype=np.int64),
                loss=losses,
                **{name: unknown[: len(losses)] for name in ("time", "rate", "norm", "seconds", "wait_seconds")},
            )
        )
        gathered.from_history.append((history.first_step, last))
        gathered.limit = min(history.first_step, last)
        expected = history.parent
        if expected <= until:
            break
    return expected


def _histories(store: Store, newest: str, pool: Executor) -> Iterator[tuple[str, History | None]]:
    ids = _ids(store, "history/")
    older = ids[: bisect.bisect_right(ids, newest)]
    contents = read_ahead(store, [history_key(i) for i in reversed(older)], pool)
    for identity, (_, content) in zip(reversed(older), contents, strict=True):
        try:
            yield identity, None if content is None else History.model_validate_json(content)
        except ValidationError:
            yield identity, None


def _began_with(store: Store, tip: str) -> str:
    """Return what the manifest says: a history does not know of forks."""
    try:
        return read_manifest(store, tip).counters.forked_from
    except (StorageError, CheckpointCorrupt):
        return ""


def _curve(store: Store, tip: str, gathered: _Gathered, rollbacks: tuple[Rollback, ...]) -> Curve:
    steps = joined(gathered.steps[::-1])
    (_, _), step = parse_id(tip)
    notes = list(gathered.notes)
    batch = gathered.global_batch_tokens
    if gathered.from_history:
        low, high = min(a for a, _ in gathered.from_history), max(b for _, b in gathered.from_history)
        known = sum(b - a for a, b in gathered.from_history)
        notes.append(
            f"of {known:,} steps between {low:,} and {high:,} only the training loss is known: an older release wrote "
            "no curve, or it was removed"
        )
        batch = batch or _batch_tokens(store, tip)
    absent = set(range(int(steps.step[0]), step + 1)) - set(steps.step.tolist()) if len(steps) else set()
    missing = sum(not is_skipped(one - 1, gathered.rollbacks) for one in absent)
    if missing:
        notes.append(f"{missing:,} steps in between were recorded by nobody")
    validations: dict[tuple[int, str], ValidationRecord] = {}
    for record in reversed(gathered.validations):
        before = validations.get((record.step, record.stage))
        validations[record.step, record.stage] = record if before is None else _merged(before, record)
    return Curve(
        uri=store.uri,
        run=gathered.run or store.uri.rstrip("/").rpartition("/")[2],
        checkpoint=tip,
        step=step,
        global_batch_tokens=batch,
        steps=steps,
        stages=spans(steps, list(gathered.stages)),
        validations=tuple(validations.values()),
        mixtures=tuple(reversed(gathered.mixtures)),
        told=tuple(sorted(gathered.told, key=lambda one: one.record.time)),
        rollbacks=rollbacks,
        forks=tuple(reversed(gathered.forks)),
        notes=tuple(notes),
    )


def _merged(before: ValidationRecord, after: ValidationRecord) -> ValidationRecord:
    """Return both of one step as one: a generation that starts again measures anew what the one before had."""
    domains = {one.domain: one for one in before.domains} | {one.domain: one for one in after.domains}
    changes = {"domains": tuple(domains.values()), "stage_start": before.stage_start or after.stage_start}
    return after.model_copy(update=changes)


def _batch_tokens(store: Store, tip: str) -> int:
    try:
        manifest = read_manifest(store, tip)
    except (StorageError, CheckpointCorrupt):
        return 0
    return manifest.global_batch_sequences * manifest.sequence_length
