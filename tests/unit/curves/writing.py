"""A run that saves, crashes, rolls back and is forked, as the trainer writes it, and what it ought to read as."""

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

from skywork_trainer.checkpoint.manifest import checkpoint_id, manifest_key
from skywork_trainer.checkpoint.rollbacks import rollback_key
from skywork_trainer.control import DomainLoss
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
    encode,
)
from skywork_trainer.guards import Interval, Rollback, is_skipped
from skywork_trainer.storage import Store

BATCH = 1000
STAGE_STEPS = 7
INCARNATION = 1_700_000_000


@dataclass(frozen=True)
class Saved:
    """A checkpoint and all that led to it."""

    id: str
    step: int
    records: tuple[Record, ...]
    durable: bool


@dataclass
class Run:
    """One run's trainer; every method is one thing that may happen to it."""

    store: Store
    dice: random.Random
    clock: float = 1e9
    incarnation: int = INCARNATION
    generation: int = 0
    step: int = 0
    parent: str = ""
    parent_step: int = 0
    forked_from: str = ""
    past: tuple[Record, ...] = ()
    """Behind the checkpoint that the generation goes on from."""
    fresh: list[Record] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    began: list[float] = field(default_factory=list)
    """When each generation's worker began, of those that saved something."""

    def begin(self, after: str = "") -> None:
        """A generation starts from what is committed."""
        self.generation += self.dice.choice((1, 1, 2))
        self._pass(self.dice.random() * 50, "")
        self._began = self.clock
        self.spent = {}
        self._pass(3.0, "initialize")
        self._pass(2.0, "restore")
        # Records of a generation that saves nothing are gone with it.
        self.fresh = []
        self._note(
            GenerationRecord(
                generation=self.generation, step=self.step, stage=self.stage, time=self.clock, world=4, after=after
            )
        )

    @property
    def stage(self) -> str:
        return f"s{self.step // STAGE_STEPS}"

    def train(self, count: int) -> None:
        for _ in range(count):
            stage = self.stage
            if is_skipped(self.step, self.rollbacks):
                # Left out: it counts as done, and nobody records it.
                self.step += 1
                continue
            seconds = 1 + self.dice.random()
            self._pass(0.25 * seconds, "dataWait")
            self._pass(0.75 * seconds, "train")
            self.step += 1
            loss = float("nan") if self.dice.random() < 0.1 else self.dice.random()
            self._note(
                StepRecord(
                    step=self.step, stage=stage, time=self.clock, loss=loss, rate=1e-3, norm=self.dice.random(),
                    seconds=seconds, wait_seconds=0.25 * seconds,
                )
            )  # fmt: skip

    def validate(self) -> None:
        self._pass(1.5, "validate")
        losses = tuple(
            DomainLoss(domain=name, loss=self.dice.random(), tokens=10, step=self.step, bytes=40) for name in ("a", "b")
        )
        start = self.step % STAGE_STEPS == 0
        self._note(
            ValidationRecord(
                step=self.step, stage=self.stage, time=self.clock, seconds=1.5, stage_start=start, domains=losses
            )
        )

    def spike(self) -> None:
        self._note(EventRecord(step=self.step, time=self.clock, reason="LossSpike", message="too high"))

    def save(self, *, durable: bool = True, dies: bool = False) -> None:
        """A part, then the manifest; one that dies leaves the part alone."""
        if self.step <= self.parent_step:
            return
        self._pass(0.5, "checkpoint")
        self._note(TimeRecord(generation=self.generation, time=self.clock, spent=dict(self.spent)))
        self._note(MixtureRecord(step=self.step, stage=self.stage, sequences={"main": 4 * self.step}))
        identity = checkpoint_id(incarnation=self.incarnation, generation=self.generation, step=self.step)
        part = Part(
            id=identity,
            parent=self.parent,
            first_step=self.parent_step,
            last_step=self.step,
            global_batch_tokens=BATCH,
            run="demo",
            forked_from="" if self.parent else self.forked_from,
        )
        self.store.put(curve_key(identity), encode([part, *self.fresh]))
        self.began.append(self._began)
        if dies:
            return
        if durable:
            self.store.put(manifest_key(identity), b"{}")
        self.past = (*self.past, *self.fresh)
        self.saved.append(Saved(identity, self.step, self.past, durable))
        self.parent, self.parent_step, self.fresh = identity, self.step, []

    def crash(self, *, nodes_too: bool = False, after: str = "Killed") -> None:
        """All that is not saved is gone; what only the nodes keep goes with them."""
        standing = [one for one in self.saved if not (nodes_too and not one.durable) and not self.abandoned(one)]
        self.saved = [one for one in self.saved if one.durable or not nodes_too]
        self._resume(standing[-1] if standing else None)
        self.begin(after)

    def roll_back(self, at: int) -> None:
        """Training returns to an earlier checkpoint, and what lies behind it is left."""
        standing = [one for one in self.saved if not self.abandoned(one)]
        if not standing:
            return
        target = standing[at % len(standing)]
        self.rollbacks.append(
            Rollback(
                number=len(self.rollbacks) + 1,
                time=self.clock,
                saved_by=(self.incarnation, self.generation),
                spike_step=self.step,
                loss=9.0,
                mean=1.0,
                deviation=0.1,
                to_step=target.step,
                skip=Interval(target.step, target.step + 2),
            )
        )
        self.store.put(rollback_key(len(self.rollbacks)), self.rollbacks[-1].model_dump_json().encode())
        self._resume(target)
        self.begin("LossSpike")

    def apply_again(self) -> None:
        """The run is deleted and applied anew with the same folder; its nodes are others."""
        self.incarnation += 100_000
        self.generation = 0
        self.crash(nodes_too=True, after="")

    def fork(self, store: Store, at: int) -> "Run | None":
        """Another run that begins with one of this one's checkpoints."""
        durable = [one for one in self.saved if one.durable]
        if not durable:
            return None
        start = durable[at % len(durable)]
        return replace(
            self,
            store=store,
            incarnation=self.incarnation + 7,
            generation=0,
            step=start.step,
            parent="",
            parent_step=start.step,
            forked_from=f"{self.store.uri}/checkpoints/{start.id}",
            past=start.records,
            fresh=[],
            saved=[],
            rollbacks=[],
            spent={},
            began=[],
        ).started()

    def started(self) -> "Run":
        # What a fork returns to when it crashes before it has saved.
        self._start = (self.step, self.past)
        self.begin()
        return self

    def counts(self) -> Saved | None:
        """The checkpoint that the run is known by."""
        durable = [one for one in self.saved if one.durable and not self.abandoned(one)]
        return max(durable, key=lambda one: one.id, default=None)

    def abandoned(self, one: Saved) -> bool:
        incarnation, generation, _ = (int(number) for number in one.id.split("-"))
        return any((incarnation, generation) <= r.saved_by and one.step > r.to_step for r in self.rollbacks)

    def _resume(self, found: Saved | None) -> None:
        if found is None:
            self.step, self.past = self._start
            self.parent, self.parent_step = "", self.step
        else:
            self.step, self.past, self.parent, self.parent_step = found.step, found.records, found.id, found.step

    def _note(self, record: Record) -> None:
        self.fresh.append(record)

    def _pass(self, seconds: float, state: str) -> None:
        self.clock += seconds
        if state:
            self.spent[state] = self.spent.get(state, 0.0) + seconds


def of(records: tuple[Record, ...], kind: type[Any]) -> list[Any]:
    """The records of one kind."""
    return [record for record in records if isinstance(record, kind)]


def distinct(records: list[ValidationRecord]) -> list[tuple[int, str, dict[str, float]]]:
    """Validations as a reader tells them: one for a step of a stage, measured last."""
    found = []
    for (step, stage), same in itertools.groupby(records, key=lambda one: (one.step, one.stage)):
        found.append((step, stage, {d.domain: d.loss for one in same for d in one.domains}))
    return found
