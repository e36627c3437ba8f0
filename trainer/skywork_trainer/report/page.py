"""The report as one HTML file: no script, nothing fetched, readable on paper and on a phone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from skywork_trainer.control import Spent
from skywork_trainer.report import Reported
from skywork_trainer.report.figures import Section, losses, training
from skywork_trainer.report.times import STATES, times
from skywork_trainer.words import count, duration, moment, number, share, shares, signed

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1060px; margin: 0 auto; }
body { padding: 16px; }
h1 { font-size: 1.5em; margin: 0 0 .2em; }
h2 { font-size: 1.15em; margin: 2em 0 .3em; border-top: 1px solid #ddd; padding-top: 1em; }
h3 { font-size: .95em; margin: .8em 0 .2em; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .3em 0 .8em; color: #555; max-width: 46em; overflow-wrap: anywhere; }
.note { border-left: 3px solid #e69f00; padding-left: .7em; color: #444; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4em 0 1em; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .9em .25em 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: #555; border-bottom: 1px solid #bbb; }
td { border-bottom: 1px solid #eee; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { white-space: normal; max-width: 30em; overflow-wrap: anywhere; }
td.text:first-child { min-width: 7em; }
.worse { color: #b3261e; } .better { color: #1b6e45; }
.plots { display: grid; gap: 8px 20px; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
.wide { grid-column: 1 / -1; }
figure { margin: 0; break-inside: avoid; }
figure .scroll svg { display: block; width: 100%; height: auto; }
.wide .scroll svg { min-width: 560px; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } h2 { break-after: avoid; } }
"""
# What a page must not do, said to the browser as well: a report may be opened from a mail.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(runs: Sequence[Reported], *, now: float) -> str:
    """Return the report of the runs, as of `now` (Unix seconds)."""
    title = "Training report: " + ", ".join(run.label for run in runs)
    sections = [*losses(runs), *training(runs), *times(runs)]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>Written {moment(now)}, from what lies beside the checkpoints. What was trained behind a run's newest "
        "checkpoint is not in storage, and not in here.</p>",
        _overview(runs),
        _domains(runs),
        *(_cluster(run) for run in runs if run.status is not None),
        *(_notes(run) for run in runs if run.curve.notes or run.curve.forks),
        *(_section(section) for section in sections),
        _spent(runs),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _overview(runs: Sequence[Reported]) -> str:
    rows = []
    for run in runs:
        one = run.summary
        stages = ", ".join(f"{stage.name or '(unknown)'} {count(stage.tokens)}" for stage in one.stages)
        faults = ", ".join(f"{reason} {times}" for reason, times in one.faults.items())
        if one.rollbacks:
            faults += (", " if faults else "") + f"rollbacks {one.rollbacks}"
        rows.append(
            [
                run.label,
                moment(one.time),
                f"{one.step:,}",
                count(one.tokens),
                stages or "–",
                number(one.train_loss),
                number(one.average_loss),
                number(one.average_perplexity, 2),
                count(one.tokens_per_second),
                share(one.accounts.goodput),
                faults or "none",
            ]
        )
    head = [
        "run", "newest checkpoint", "steps", "tokens", "stages", "train loss", "validation loss", "perplexity",
        "tokens/s", "goodput", "faults",
    ]  # fmt: skip
    words = (
        "Validation loss is the mean over the domains, each counting the same; perplexity is the exponential of that: "
        "the geometric mean of the domains' own. Goodput is the part of the wall time that went into steps that count."
    )
    table = _turned(head, rows) if len(runs) < 4 else _table(head, rows, text=(4, 10))
    return f"<h2>Summary</h2>{table}<p>{words}</p>"


def _domains(runs: Sequence[Reported]) -> str:
    parts = []
    head = ["domain", "loss", "at stage start", "change", "perplexity", "bits per byte", "reference loss", "at step"]
    for run in runs:
        rows = [
            [
                one.domain,
                number(one.loss),
                number(one.stage_start),
                signed(one.change),
                number(one.perplexity, 2),
                number(one.bits_per_byte),
                number(one.reference_loss),
                f"{one.step:,}",
            ]
            for one in run.summary.domains
        ]
        if not rows:
            continue
        dropped = [at for at in (5, 6) if all(row[at] == "–" for row in rows)]
        kept = [at for at in range(len(head)) if at not in dropped]
        stage = run.curve.validations[-1].stage
        parts.append(f"<h3>{escape(run.label)}, stage {escape(stage)}</h3>")
        parts.append(_table([head[at] for at in kept], [[row[at] for at in kept] for row in rows], toned=3))
    return "<h2>Held-out domains</h2>" + "".join(parts) if parts else ""


def _spent(runs: Sequence[Reported]) -> str:
    timed = [run for run in runs if run.summary.accounts.wall_seconds > 0]
    if not timed:
        return ""
    rows = []
    for state in Spent:
        seconds = [run.summary.accounts.seconds.get(state, 0.0) for run in timed]
        walls = [run.summary.accounts.wall_seconds for run in timed]
        parts = [f"{duration(s)} ({s / wall:.1%})" for s, wall in zip(seconds, walls, strict=True)]
        rows.append([STATES[state][0], *parts])
    rows.append(["wall time", *(duration(run.summary.accounts.wall_seconds) for run in timed)])
    return _table(["state", *(run.label for run in timed)], rows)


def _cluster(run: Reported) -> str:
    status: Mapping[str, Any] = run.status or {}
    restarts = status.get("restarts") or {}
    by_reason = ", ".join(f"{one.get('reason')} {one.get('count')}" for one in restarts.get("byReason") or [])
    behind = max(int(status.get("step") or 0) - run.curve.step, 0)
    last = restarts.get("last") or {}
    rows = [
        ["state", str(status.get("state") or "–")],
        ["behind the newest checkpoint", f"{behind:,} steps, {count(behind * run.curve.global_batch_tokens)} tokens"],
        ["restarts", f"{restarts.get('total', 0)}" + (f": {by_reason}" if by_reason else "")],
    ]
    if last:
        rows.append(["last failure", f"{last.get('reason')} at {last.get('time')}: {last.get('message')}"])
    if status.get("goodput"):
        rows.append(["goodput as the operator counts", share(_float(status["goodput"]))])
    if spent := shares(status.get("time")):
        rows.append(["time as the operator counts", spent])
    body = "".join(f'<tr><td class="text">{escape(a)}</td><td class="text">{escape(b)}</td></tr>' for a, b in rows)
    return f"<h2>{escape(run.label)} in the cluster</h2><div class=scroll><table>{body}</table></div>"


def _notes(run: Reported) -> str:
    forks = [f"begins with {fork.uri}, behind step {fork.step:,}" for fork in run.curve.forks]
    lines = "".join(f'<p class="note">{escape(run.label)}: {escape(note)}</p>' for note in [*run.curve.notes, *forks])
    return lines


def _section(section: Section) -> str:
    plots = "".join(
        f"<figure{' class=wide' if plot.wide else ''}>"
        + (f"<h3>{escape(plot.title)}</h3>" if plot.title != section.title else "")
        + f"<div class=scroll>{plot.svg}</div></figure>"
        for plot in section.plots
    )
    return f"<h2>{escape(section.title)}</h2><p>{escape(section.words)}</p><div class=plots>{plots}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (), toned: int = -1) -> str:
    def cell(at: int, value: str) -> str:
        tone = "" if at != toned else "worse" if value.startswith("+") else "better" if value.startswith("−") else ""
        tone = "text" if at in text else tone
        return f'<td class="{tone}">{escape(value)}</td>' if tone else f"<td>{escape(value)}</td>"

    top = "".join(
        f'<th class="text">{escape(name)}</th>' if at in text else f"<th>{escape(name)}</th>"
        for at, name in enumerate(head)
    )
    body = "".join(f"<tr>{''.join(cell(at, value) for at, value in enumerate(row))}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{top}</tr>{body}</table></div>"


def _turned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a wide table of few rows on its side, so that it fits a phone."""
    turned = [[name, *(row[at] for row in rows)] for at, name in enumerate(head)]
    return _table(turned[0], turned[1:], text=range(len(rows) + 1))


def _float(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
