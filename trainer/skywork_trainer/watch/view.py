"""What a person is told of a run: words and numbers out of a snapshot. Pure; what is unknown or missing is left out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from skywork_trainer.watch.asking import Snapshot
from skywork_trainer.words import count, duration, number, share, shares, signed

_BARS = "▁▂▃▄▅▆▇█"
_MOST_POINTS = 24
_MOST_EVENTS = 6
# True is well for these; any other condition that is True is something to look at.
_ORDINARY = frozenset(("Accepted", "Prepared", "Running", "Succeeded", "Suspended", "Failed"))
_SUFFIXES: dict[str, int] = {"": 1} | {s: 1000 ** (i + 1) for i, s in enumerate("kMGTP")}
_SUFFIXES |= {s + "i": 1024 ** (i + 1) for i, s in enumerate("KMGTP")}


@dataclass(frozen=True)
class Bar:
    """How much of something is done."""

    label: str
    part: float
    text: str


@dataclass(frozen=True)
class Domain:
    """One held-out domain in a row."""

    name: str
    loss: str
    change: str
    """Since the stage began; empty where that is not known."""
    bits_per_byte: str
    reference_loss: str
    curve: str
    """A line of bars, the newest last."""


@dataclass(frozen=True)
class Event:
    """Something the cluster told of."""

    age: str
    warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class View:
    """A frame, in words."""

    name: str
    state: str
    why: str
    bars: tuple[Bar, ...]
    facts: tuple[tuple[str, str], ...]
    domains: tuple[Domain, ...]
    diagnoses: tuple[tuple[str, str], ...]
    """What is found, and the evidence with what to do."""
    events: tuple[Event, ...]
    step: int
    ended: str = ""
    """Succeeded or Failed once it is over."""
    problem: str = ""
    """Why this is older than it should be."""


def view(snapshot: Snapshot, *, now: float, problem: str = "") -> View:
    """Return what there is to tell at `now` (Unix seconds)."""
    run = snapshot.run
    status, metadata = _map(run.get("status")), _map(run.get("metadata"))
    conditions = _maps(status.get("conditions"))
    true = {str(one.get("type")) for one in conditions if one.get("status") == "True"}
    return View(
        name=f"{metadata.get('namespace', '')}/{metadata.get('name', '')}",
        state=_clean(status.get("state")) or "Pending",
        why=_why(conditions),
        bars=_bars(_map(run.get("spec")), status),
        facts=tuple(_facts(_map(run.get("spec")), status, snapshot.progress, now)),
        domains=tuple(_domains(status, snapshot.progress)),
        diagnoses=tuple(
            (f"{one.get('type')} ({one.get('reason', '')})", _clean(one.get("message")))
            for one in conditions
            if one.get("status") == "True" and one.get("type") not in _ORDINARY
        ),
        events=_events(snapshot.events, now),
        step=_int(status.get("step")),
        ended=next((word for word in ("Failed", "Succeeded") if word in true), ""),
        problem=problem,
    )


def _why(conditions: Sequence[Mapping[str, Any]]) -> str:
    found = {str(one.get("type")): one for one in conditions}
    for kind, status in (
        ("Failed", "True"),
        ("Succeeded", "True"),
        ("Accepted", "False"),
        ("Suspended", "True"),
        ("Running", "False"),
        ("Prepared", "False"),
    ):
        one = found.get(kind)
        if one is not None and one.get("status") == status:
            message = _clean(one.get("message"))
            return f"{one.get('reason', kind)}: {message}" if message else str(one.get("reason", kind))
    return ""


def _bars(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[Bar, ...]:
    stages = _maps(spec.get("stages"))
    wanted = {str(stage.get("name")): _quantity(stage.get("tokens")) for stage in stages}
    done = {str(stage.get("name")): _int(stage.get("tokens")) for stage in _maps(status.get("stages"))}
    bars = []
    name = str(status.get("stage") or "")
    if wanted.get(name):
        place = f"{list(wanted).index(name) + 1} of {len(wanted)}"
        bars.append(_bar(f"stage {name} ({place})", done.get(name, 0), wanted[name]))
    if sum(wanted.values()):
        bars.append(_bar("run", _int(status.get("tokens")), sum(wanted.values())))
    return tuple(bars)


def _bar(label: str, done: float, wanted: float) -> Bar:
    part = min(max(done / wanted, 0.0), 1.0)
    return Bar(label, part, f"{part:.1%}  {count(done)} of {count(wanted)} tokens")


def _facts(
    spec: Mapping[str, Any], status: Mapping[str, Any], progress: Mapping[str, Any], now: float
) -> Iterator[tuple[str, str]]:
    pace = _int(status.get("tokensPerSecond"))
    yield "step", f"{_int(status.get('step')):,}"
    if pace:
        yield "throughput", f"{count(pace)} tokens/s"
    for label, name in (("MFU", "modelFlopsUtilization"), ("goodput", "goodput")):
        if (value := _float(status.get(name))) is not None:
            yield label, share(value)
    if spent := shares(status.get("time")):
        yield "time", spent
    if eta := _eta(spec, status, pace, now):
        yield "done in", eta
    if (loss := _float(status.get("trainLoss"))) is not None:
        yield "train loss", number(loss)
    if (average := _float(status.get("valLoss"))) is not None:
        yield "validation loss", number(average)
    if (rate := _float(status.get("learningRate"))) is not None:
        yield "learning rate", f"{rate:.3g}"
    if (norm := _float(progress.get("grad_norm"))) is not None:
        yield "gradient norm", f"{norm:.3g}"
    nodes = _map(status.get("nodes"))
    if nodes:
        yield (
            "nodes",
            f"{_int(nodes.get('training'))} training, {_int(nodes.get('ready'))} ready, "
            f"{_int(nodes.get('desired'))} asked for",
        )
    slow = [f"{one.get('node')} ({one.get('slowdown')}x)" for one in _maps(status.get("stragglers"))]
    if slow:
        yield "stragglers", ", ".join(slow)
    avoided = [str(one.get("node")) for one in _maps(status.get("nodeStrikes")) if one.get("avoided")]
    if avoided:
        yield "avoided nodes", ", ".join(avoided)
    yield from _restarts(_map(status.get("restarts")), now)
    saved = _map(status.get("lastCheckpoint"))
    if saved:
        yield "last checkpoint", f"step {_int(saved.get('step')):,}, {_age(saved.get('time'), now)} ago"


def _restarts(restarts: Mapping[str, Any], now: float) -> Iterator[tuple[str, str]]:
    if not restarts:
        return
    by_reason = ", ".join(f"{one.get('reason')} {one.get('count')}" for one in _maps(restarts.get("byReason")))
    yield "restarts", f"{_int(restarts.get('total'))}" + (f" ({by_reason})" if by_reason else "")
    last = _map(restarts.get("last"))
    if last:
        yield "last failure", f"{last.get('reason')} {_age(last.get('time'), now)} ago: {_clean(last.get('message'))}"


def _eta(spec: Mapping[str, Any], status: Mapping[str, Any], pace: int, now: float) -> str:
    at = _time(status.get("estimatedCompletion"))
    if at is not None:
        return f"{duration(max(at - now, 0.0))} ({datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M %Z})"
    if status.get("eta"):
        return _clean(status["eta"])
    left = sum(_quantity(stage.get("tokens")) for stage in _maps(spec.get("stages"))) - _int(status.get("tokens"))
    return f"about {duration(left / pace)} at this pace" if pace and left > 0 else ""


def _domains(status: Mapping[str, Any], progress: Mapping[str, Any]) -> Iterator[Domain]:
    stages = _maps(status.get("stages"))
    name = status.get("stage") or (stages[-1].get("name") if stages else "")
    of_stage = next((one for one in stages if one.get("name") == name), {})
    starts = {str(one.get("domain")): _float(one.get("start")) for one in _maps(of_stage.get("validationLoss"))}
    points = _maps(progress.get("validation_curve"))
    for one in _maps(status.get("validationLoss")):
        domain, loss = str(one.get("domain")), _float(one.get("loss"))
        start = starts.get(domain)
        past = [_float(_map(point.get("losses")).get(domain)) for point in points]
        yield Domain(
            name=_clean(domain),
            loss=number(loss),
            change=signed(loss - start) if loss is not None and start is not None else "",
            bits_per_byte=_optional(one.get("bitsPerByte")),
            reference_loss=_optional(one.get("referenceLoss")),
            curve=sparkline([value for value in past if value is not None]),
        )


def sparkline(values: Sequence[float]) -> str:
    """Return the newest values as a line of bars, the lowest as the lowest bar; empty for fewer than two."""
    shown = [value for value in values if math.isfinite(value)][-_MOST_POINTS:]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def _events(events: Sequence[Mapping[str, Any]], now: float) -> tuple[Event, ...]:
    def when(event: Mapping[str, Any]) -> float:
        series = _map(event.get("series"))
        places = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
        return next((time for place in places if (time := _time(place)) is not None), 0.0)

    newest = sorted(events, key=when)[-_MOST_EVENTS:]
    return tuple(
        Event(
            age=duration(max(now - when(event), 0.0)) if when(event) else "",
            warning=event.get("type") == "Warning",
            reason=_clean(event.get("reason")),
            message=_clean(event.get("message") or event.get("note")),
        )
        for event in newest
    )


def _age(time: Any, now: float) -> str:
    at = _time(time)
    return "an unknown time" if at is None else duration(max(now - at, 0.0))


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None


def _quantity(text: Any) -> float:
    """Return a Kubernetes quantity as a number, 0 for what is none."""
    digits = str(text or "").rstrip("kKMGTPi")
    try:
        return float(digits) * _SUFFIXES[str(text or "")[len(digits) :]]
    except (ValueError, KeyError):
        return 0.0


def _optional(value: Any) -> str:
    found = _float(value)
    return "" if found is None else number(found)


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _int(value: Any) -> int:
    found = _float(value)
    return int(found) if found is not None and math.isfinite(found) else 0


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _clean(value: Any) -> str:
    """Return text of somebody else's as one line that moves no cursor."""
    text = " ".join(str(value or "").split())
    return "".join(letter for letter in text if letter.isprintable())
