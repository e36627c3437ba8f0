"""The plots of a report; each says in words what it shows and how to read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from skywork_trainer.curves.run import Curve, Floats
from skywork_trainer.curves.series import Measured, averages, drawn, measured
from skywork_trainer.curves.thinning import smooth
from skywork_trainer.report import Reported
from skywork_trainer.report.drawing import SMALL, WIDE, color, cut, figure, line, mark_stages, svg, tokens_axis

Line = tuple[str, Floats, Floats]
"""Name, x and y."""
_LOSS = "nats per token"
_BITS = "bits per byte"


@dataclass(frozen=True)
class Plot:
    """One picture of the report."""

    title: str
    svg: str
    wide: bool = True


@dataclass(frozen=True)
class Section:
    """Pictures that belong together, and what to know about them."""

    title: str
    words: str
    plots: tuple[Plot, ...]


def losses(runs: Sequence[Reported]) -> list[Section]:
    """Return validation loss, change in the newest stage, and what the loss is in other units."""
    found = [_overview(runs), _by_domain(runs), _changes(runs)]
    found.append(
        _units(
            runs,
            "Bits per byte",
            _BITS,
            "What a byte of the held-out text costs. Unlike the loss per token it can be compared between runs with "
            "different tokenizers.",
            lambda one: one.bits_per_byte,
        )
    )
    found.append(
        _units(
            runs,
            "Loss per token of the reference tokenizer",
            "nats per reference token",
            "The same total loss, divided by the tokens that the reference tokenizer makes of the text, as the Skywork "
            "report compares models.",
            lambda one: one.reference_loss,
        )
    )
    return [section for section in found if section.plots]


def training(runs: Sequence[Reported]) -> list[Section]:
    """Return training loss, mixture, learning rate, gradient norm and throughput."""
    curves = [run.curve for run in runs]
    raw = [(run.label, _tokens(run.curve), run.curve.steps.loss) for run in runs if len(run.curve.steps)]
    found = []
    if raw:
        plot = _lines("Training loss", raw, curves, _LOSS, faint=True, small=False)
        words = "Every step, thinned so that no spike is lost, and the mean over one hundredth of the steps."
        found.append(Section("Training loss", words, (plot,)))
    mixtures = tuple(plot for run in runs for plot in _mixtures(run, alone=len(runs) == 1))
    if mixtures:
        words = "What each source gave to a stage, as it was really drawn."
        found.append(Section("Mixture", words, mixtures))
    columns: list[tuple[str, str, Callable[[Curve], Floats], bool]] = [
        ("Learning rate", "", lambda curve: curve.steps.rate, False),
        ("Gradient norm before clipping", "", lambda curve: curve.steps.norm, True),
        ("Throughput", "tokens/s", _rates, True),
    ]
    plots = []
    for title, unit, column, faint in columns:
        drawable = [(run.label, _tokens(run.curve), column(run.curve)) for run in runs if len(run.curve.steps)]
        drawable = [one for one in drawable if np.isfinite(one[2]).any()]
        if drawable:
            plots.append(_lines(title, drawable, curves, unit, faint=faint, small=True))
    if plots:
        found.append(
            Section(
                "Steps", "Lines are means over one hundredth of the steps where single steps are noisy.", tuple(plots)
            )
        )
    return found


def _overview(runs: Sequence[Reported]) -> Section:
    curves = [run.curve for run in runs]
    if len(runs) == 1:
        lines = [(name, one.tokens, one.loss) for name, one in measured(curves[0]).items()]
        words = "Loss of every held-out domain against the tokens trained. Lower is better."
    else:
        lines = [(run.label, *averages(run.curve)) for run in runs if run.curve.validations]
        words = (
            "Mean loss of the held-out domains, each counting the same, against the tokens trained. Lower is better."
        )
    plots = (_lines("Validation loss", lines, curves, _LOSS, small=False),) if lines else ()
    return Section("Validation loss", words, plots)


def _by_domain(runs: Sequence[Reported]) -> Section:
    tables = [measured(run.curve) for run in runs]
    names = _ordered(tables)
    if len(runs) == 1 and len(names) < 2:
        return Section("", "", ())
    plots = tuple(
        _lines(
            name,
            [(run.label, t[name].tokens, t[name].loss) for run, t in zip(runs, tables, strict=True) if name in t],
            [run.curve for run in runs],
            _LOSS,
            small=True,
            first_color=at if len(runs) == 1 else 0,
        )
        for at, name in enumerate(names)
    )
    return Section("Validation loss by domain", "The same, each domain on an axis of its own.", plots)


def _changes(runs: Sequence[Reported]) -> Section:
    plots = []
    for run in runs:
        stage = run.curve.validations[-1].stage if run.curve.validations else ""
        table = measured(run.curve, stage=stage)
        begin = next((span.first_step for span in run.curve.stages if span.name == stage), 0)
        origin = begin * run.curve.global_batch_tokens
        lines = [
            (name, one.tokens - origin, one.loss - one.loss[0]) for name, one in table.items() if len(one.loss) > 1
        ]
        if lines:
            title = stage if len(runs) == 1 else f"{run.label}: {stage}"
            plots.append(_lines(title, lines, [], _LOSS, small=len(runs) > 1, zero=True, axis="tokens of the stage"))
    words = (
        "How far each domain has moved since the newest stage began. Above zero it has been forgotten in part; a jump "
        "at the very start that comes back is the switch of the mixture."
    )
    return Section("Change in the newest stage", words, tuple(plots))


def _units(runs: Sequence[Reported], title: str, unit: str, words: str, pick: Callable[[Measured], Floats]) -> Section:
    tables = [measured(run.curve) for run in runs]
    known = [name for name in _ordered(tables) if any(name in t and np.isfinite(pick(t[name])).any() for t in tables)]
    curves = [run.curve for run in runs]
    if not known:
        return Section(title, words, ())
    if len(runs) == 1:
        lines = [(name, tables[0][name].tokens, pick(tables[0][name])) for name in known]
        return Section(title, words, (_lines(title, lines, curves, unit, small=False),))
    plots = tuple(
        _lines(
            name,
            [(run.label, t[name].tokens, pick(t[name])) for run, t in zip(runs, tables, strict=True) if name in t],
            curves,
            unit,
            small=True,
        )
        for name in known
    )
    return Section(title, words, plots)


def _mixtures(run: Reported, *, alone: bool) -> list[Plot]:
    plots = []
    for span in run.curve.stages:
        found = drawn(run.curve, span.name)
        if found is None or len(found.shares) < 2:
            continue
        title = span.name if alone else f"{run.label}: {span.name}"
        with figure(SMALL) as drawing:
            axes = drawing.subplots()
            names = sorted(found.shares, key=lambda name: -float(found.shares[name].mean()))
            heights = np.array([found.shares[name] for name in names])
            # Each share holds for its stretch: a step, not a slope.
            axes.stackplot(
                np.repeat(found.edges, 2)[1:-1],
                np.repeat(heights, 2, axis=1),
                labels=names,
                colors=[color(at) for at in range(len(names))],
                linewidth=0,
            )
            axes.set_xlim(found.edges[0], max(found.edges[-1], found.edges[0] + 1))
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            tokens_axis(axes)
            _legend(axes, len(names))
            plots.append(Plot(title, svg(drawing, f"Mixture of stage {title}"), wide=False))
    return plots


def _lines(
    title: str,
    lines: Sequence[Line],
    marked: Sequence[Curve],
    unit: str,
    *,
    small: bool,
    faint: bool = False,
    zero: bool = False,
    first_color: int = 0,
    axis: str = "tokens trained",
) -> Plot:
    """Draw lines over tokens; `faint` draws noise thinly behind its mean."""
    with figure(SMALL if small else WIDE) as drawing:
        axes = drawing.subplots()
        shown = []
        for at, (name, x, y) in enumerate(lines, start=first_color):
            if faint and len(y) > 200:
                mean = smooth(y, max(len(y) // 100, 2))
                line(axes, x, y, at, "_", linewidth=0.5, alpha=0.28)
                line(axes, x, mean, at, name)
            else:
                line(axes, x, y, at, name)
            shown.append((x, y))
        if zero:
            axes.axhline(0, color="#666666", linewidth=0.9)
        else:
            cut(axes, shown)
        axes.margins(x=0.01)
        tokens_axis(axes, axis)
        axes.set_ylabel(unit)
        if unit in ("tokens/s", ""):
            axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        mark_stages(axes, marked)
        if len(lines) > 1:
            _legend(axes, len(lines))
        described = f"{title}: {', '.join(name for name, _, _ in lines)}"
        return Plot(title, svg(drawing, described), wide=not small)


def _legend(axes: Axes, count: int) -> None:
    wide = axes.figure.get_figwidth() > 5  # type: ignore[union-attr]
    axes.figure.legend(loc="outside lower center", ncols=min(count, 6 if wide else 3), fontsize=8, handlelength=1.6)


def _tokens(curve: Curve) -> Floats:
    tokens: Floats = curve.steps.step.astype(np.float64) * curve.global_batch_tokens
    return tokens


def _rates(curve: Curve) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        rates: Floats = np.where(curve.steps.seconds > 0, curve.global_batch_tokens / curve.steps.seconds, np.nan)
    return rates


def _ordered(tables: Sequence[dict[str, Measured]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))
