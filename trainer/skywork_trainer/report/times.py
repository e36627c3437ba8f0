"""Pictures of time: where it went, and what happened when."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import EngFormatter, PercentFormatter

from skywork_trainer.control import Spent
from skywork_trainer.curves.run import Curve
from skywork_trainer.curves.series import throughput
from skywork_trainer.curves.thinning import smooth
from skywork_trainer.report import Reported
from skywork_trainer.report.drawing import color, dates, dates_axis, figure, line, svg
from skywork_trainer.report.figures import Plot, Section

STATES = {
    Spent.TRAIN: ("training", "#2E7D5B"),
    Spent.DATA_WAIT: ("waiting for data", "#E69F00"),
    Spent.CHECKPOINT: ("saving", "#56B4E9"),
    Spent.VALIDATE: ("validating", "#0072B2"),
    Spent.INITIALIZE: ("starting", "#B39DDB"),
    Spent.RESTORE: ("restoring", "#7E57C2"),
    Spent.IDLE: ("idle", "#BDBDBD"),
    Spent.LOST: ("trained again", "#C62828"),
}
"""What a person calls each, and its colour."""
_MAGNIFY = 0.8
_MOST_REASONS = 12


def times(runs: Sequence[Reported]) -> list[Section]:
    """Return where the time went, and each run's throughput with what happened to it."""
    timed = [run for run in runs if run.summary.accounts.wall_seconds > 0]
    found = []
    if timed:
        words = (
            "All time from the first worker's start to the newest checkpoint. Idle is what no generation accounts for: "
            "waiting for nodes, and steps behind the last checkpoint of a generation that crashed."
        )
        plots = [_bars(timed, magnified=False)]
        if any((run.summary.accounts.goodput or 0) > _MAGNIFY for run in timed):
            plots.append(_bars(timed, magnified=True))
        found.append(Section("Where the time went", words, tuple(plots)))
    lines = [plot for run in runs if (plot := _timeline(run, alone=len(runs) == 1)) is not None]
    if lines:
        words = "Throughput over time, and below it what ended generations and what else was told, by reason."
        found.append(Section("What happened when", words, tuple(lines)))
    return found


def _bars(runs: Sequence[Reported], *, magnified: bool) -> Plot:
    states = [state for state in STATES if not (magnified and state is Spent.TRAIN)]
    with figure((7.4, 0.75 + 0.42 * len(runs) + 0.3)) as drawing:
        axes = drawing.subplots()
        rows = np.arange(len(runs))[::-1]
        left = np.zeros(len(runs))
        wall = [run.summary.accounts.wall_seconds for run in runs]
        for state in states:
            part = np.array([run.summary.accounts.seconds.get(state, 0.0) for run in runs]) / wall
            name, shade = STATES[state]
            axes.barh(rows, part, left=left, color=shade, label=name, height=0.62)
            left = left + part
        longest = float(left.max()) or 1.0
        for row, end in zip(rows, left, strict=True):
            said = f"{end:.1%}" if magnified else ""
            axes.annotate(said, (end, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlim(0, 1.12 * longest if magnified else 1)
        axes.set_yticks(rows, [run.label for run in runs])
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("of the wall time")
        drawing.legend(loc="outside lower center", ncols=4, fontsize=8, handlelength=1.0)
        title = "All but training, magnified" if magnified else "Share of the wall time"
        return Plot(title, svg(drawing, title))


def happenings(curve: Curve) -> dict[str, list[float]]:
    """Return when each kind of thing happened to the run, Unix seconds by reason, the most frequent first."""
    found: dict[str, list[float]] = {}
    for record in curve.generations:
        if record.after:
            found.setdefault(record.after, []).append(record.time)
    for rollback in curve.rollbacks:
        found.setdefault("Rollback", []).append(rollback.time)
    for event in curve.events:
        found.setdefault(event.reason, []).append(event.time)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    rest = [time for _, times in ordered[_MOST_REASONS:] for time in times]
    return dict(ordered[:_MOST_REASONS]) | ({"others": rest} if rest else {})


def _timeline(run: Reported, *, alone: bool) -> Plot | None:
    seconds, rates = throughput(run.curve)
    if len(seconds) < 2:
        return None
    things = happenings(run.curve)
    rows = len(things)
    heights = [2.2, 0.22 * rows] if rows else [2.2]
    with figure((7.4, sum(heights) + 0.8)) as drawing:
        grid = drawing.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
        axes = grid[0][0]
        at = dates(seconds)
        if len(rates) > 200:
            line(axes, at, rates, 0, "_", linewidth=0.5, alpha=0.28, marker="")
        line(axes, at, smooth(rates, max(len(rates) // 300, 1)), 0, "throughput", marker="")
        axes.set_ylim(0, 1.15 * float(np.nanquantile(rates, 0.999)))
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_ylabel("tokens/s")
        below = axes
        if rows:
            below = grid[1][0]
            for row, happened in enumerate(things.values()):
                below.plot(
                    dates(np.array(happened)),
                    np.full(len(happened), row),
                    "|",
                    color=color(row),
                    markersize=9,
                    markeredgewidth=1.6,
                )
            below.set_yticks(range(rows), [f"{reason} ({len(happened)})" for reason, happened in things.items()])
            below.set_ylim(rows - 0.5, -0.5)
        dates_axis(below)
        title = "Throughput and faults" if alone else run.label
        return Plot(title, svg(drawing, f"{title}: {', '.join(things) or 'nothing happened'}"))
