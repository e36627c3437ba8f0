"""Which sources a stage waits for, in which order they are prepared, and how far that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skywork_operator.api.status import Phase, SkyworkRunStatus, SourceStatus
from skywork_operator.api.types import SkyworkRunSpec
from skywork_operator.render import Reading, prepared_by_name
from skywork_operator.world import PrepareJob, Run

_READING: dict[Phase, Reading] = {"Scanning": "scan", "Writing": "write"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done now: one reading of one source."""

    source: str
    phase: Phase
    """Scanning or Writing."""
    reading: Reading
    job: PrepareJob | None
    """Its Job; None while there is none."""
    first: bool
    """Whether no Job of this source is left, so that its ConfigMap may be missing, too."""

    @property
    def broken(self) -> tuple[str, str] | None:
        """Why it has failed for good, a word for machines and a sentence; None while it has not."""
        if self.job is None or self.job.failed is None:
            return None
        cause = min(self.job.failures, key=lambda f: (f.retryable, f.time), default=None)
        reason, message = (cause.reason, cause.message) if cause is not None else ("PrepareFailed", self.job.failed)
        return reason, f"source {self.source}: {message}"

    @property
    def progress(self) -> str:
        """How far it is, for people."""
        done = f", {self.job.succeeded} of {self.job.parts} parts done" if self.job is not None else ""
        return f"source {self.source}: {self.phase.lower()}{done}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far the preparation for one stage is."""

    phases: Mapping[str, Phase]
    """Of everything the stage waits for, in the order it is prepared."""
    begun: tuple[str, ...] = ()
    """Sources whose preparation begins with this pass."""
    finished: tuple[str, ...] = ()
    """Sources that were not known to be prepared before this pass."""
    step: Step | None = None
    """None when everything is prepared."""


def check(spec: SkyworkRunSpec) -> None:
    """Raise ValueError when the preparations can have no order, or two of them would write to one place."""
    order(spec, list(prepared_by_name(spec)))
    seen: dict[str, str] = {}
    for name, entry in prepared_by_name(spec).items():
        uri = entry.uri.rstrip("/")
        if uri in seen:
            raise ValueError(f"{seen[uri]} and {name} are both prepared into {uri}: give each a uri of its own")
        seen[uri] = name


def order(spec: SkyworkRunSpec, names: Sequence[str]) -> list[str]:
    """Of `names` and the sources they count as known, those this run prepares, in an order that can be worked off.

    Each comes after what it knows, otherwise they stay in the order of the spec; ValueError names a circle.
    """
    entries = prepared_by_name(spec)
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise ValueError(f"sources[].prepare.duplicates.known goes in a circle: {circle}")
        if name in done or name not in entries:
            return
        prepare = entries[name].prepare
        for known in prepare.duplicates.known if prepare and prepare.duplicates else ():
            visit(known, (*path, name))
        done.append(name)

    for name in entries:
        if name in names:
            visit(name, ())
    return done


def awaited(spec: SkyworkRunSpec, status: SkyworkRunStatus, stage: str) -> list[str]:
    """What must be prepared before `stage` may start, in order; nothing when it has started already.

    What a started stage reads is there, whatever the spec says by now: to write it anew would change the past.
    """
    started = {record.name for record in status.stages}
    if stage in started:
        return []
    mixtures = {planned.name: {entry.source for entry in planned.mixture} for planned in spec.stages}
    wanted = set(mixtures[stage])
    read = {source for name in started for source in mixtures.get(name, ())}
    if started:
        read |= {domain.name for domain in spec.validation.domains}
    else:
        wanted |= {domain.name for domain in spec.validation.domains}
        # A fork starts with a later stage, whose trainer still opens what the stages before it drew from.
        before = list(mixtures)[: list(mixtures).index(stage)]
        wanted |= {source for name in before for source in mixtures[name]}
    return [name for name in order(spec, sorted(wanted)) if name not in read]


def advance(run: Run, status: SkyworkRunStatus, jobs: Sequence[PrepareJob], stage: str) -> Outcome:
    """How far the preparation for `stage` is, and the one reading that is to be done now.

    What the status calls Prepared stays so when its Jobs are gone, and a source that was being written is not scanned
    again.
    """
    names = awaited(run.spec, status, stage)
    before: dict[str, Phase | None] = {record.name: record.phase for record in status.sources}
    phases: dict[str, Phase] = {}
    begun: list[str] = []
    finished: list[str] = []
    step: Step | None = None
    for name in names:
        known = before.get(name) or "Pending"
        if step is not None or known == "Prepared":
            phases[name] = known
            continue
        mine = {job.reading: job for job in jobs if job.source == name}
        phase = _phase(run, name, known, mine)
        phases[name] = phase
        if known == "Pending":
            begun.append(name)
        if phase == "Prepared":
            finished.append(name)
            continue
        reading = _READING[phase]
        step = Step(source=name, phase=phase, reading=reading, job=mine.get(reading), first=not mine)
    return Outcome(phases=phases, begun=tuple(begun), finished=tuple(finished), step=step)


def _phase(run: Run, name: str, known: Phase, jobs: Mapping[Reading, PrepareJob]) -> Phase:
    scan, write = jobs.get("scan"), jobs.get("write")
    if write is not None:
        return "Prepared" if write.complete else "Writing"
    prepare = prepared_by_name(run.spec)[name].prepare
    scans = prepare is not None and prepare.scans
    if known == "Writing" or not scans or (scan is not None and scan.complete):
        return "Writing"
    return "Scanning"


def with_phases(status: SkyworkRunStatus, spec: SkyworkRunSpec, phases: Mapping[str, Phase]) -> SkyworkRunStatus:
    """The status with the phase of each named source or domain."""
    return _with_sources(status, spec, {name: {"phase": phase} for name, phase in phases.items()})


def with_epochs(status: SkyworkRunStatus, spec: SkyworkRunSpec, epochs: Mapping[str, float]) -> SkyworkRunStatus:
    """The status with how often each named source was read."""
    return _with_sources(status, spec, {name: {"epochs": f"{times:.3f}"} for name, times in epochs.items()})


def _with_sources(
    status: SkyworkRunStatus, spec: SkyworkRunSpec, fields: Mapping[str, Mapping[str, object]]
) -> SkyworkRunStatus:
    old = {record.name: record for record in status.sources}
    names = [entry.name for entry in (*spec.sources, *spec.validation.domains)]
    # A domain without a preparation may have a source's name; the record is the source's.
    named = dict.fromkeys(name for name in (*names, *old) if name in old or name in fields)
    records = [
        (old.get(name) or SourceStatus(name=name)).model_copy(update=dict(fields.get(name, {}))) for name in named
    ]
    return status.model_copy(update={"sources": records})
