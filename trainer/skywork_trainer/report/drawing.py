"""How every plot looks: one style, tokens in SI units, stages marked, text that stays text."""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from skywork_trainer.curves.run import Curve, Floats
from skywork_trainer.curves.thinning import thin

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D4A9C", "#7F7F7F")
"""Told apart by those who see few colours, too (Okabe and Ito)."""
DASHES = ("-", "--", ":", "-.")
WIDE, SMALL = (7.4, 3.0), (3.7, 2.3)
"""Inches."""
MOST_POINTS = 1600
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # The same curves give the same file.
    "svg.hashsalt": "skywork",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "axes.unicode_minus": True,
}
_EARLY = 0.05
"""Part of the axis in which a loss may fall from above what is shown."""


@contextmanager
def figure(size: tuple[float, float] = WIDE) -> Iterator[Figure]:
    """An empty figure in the report's style; draw, and take `svg` of it, inside the block."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=size, layout="constrained")


def svg(drawn: Figure, described: str) -> str:
    """Return the figure as an SVG element to stand in a page, with its words for those who cannot see it."""
    out = io.StringIO()
    drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # The page decides how wide it is.
    element = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", element)
    element = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", element)
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(described, quote=True)}"', 1)


def color(at: int) -> str:
    """Return the colour of the line `at`."""
    return COLORS[at % len(COLORS)]


def line(axes: Axes, x: Floats, y: Floats, at: int, label: str, **style: object) -> None:
    """Draw a line of few points with marks on them, one of many thinned."""
    thinned_x, thinned_y = thin(x, y, MOST_POINTS)
    given: dict[str, object] = {"color": color(at), "linestyle": DASHES[at // len(COLORS) % len(DASHES)]}
    if len(x) <= 40:
        given |= {"marker": "o", "markersize": 2.6}
    axes.plot(thinned_x, thinned_y, label=label, **(given | style))  # type: ignore[arg-type]


def tokens_axis(axes: Axes, label: str = "tokens trained") -> None:
    """Say that x is tokens, in SI units."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label)


def dates(unix_seconds: Floats) -> Floats:
    """Return the times as matplotlib counts them."""
    return unix_seconds / 86400.0


def dates_axis(axes: Axes) -> None:
    """Say that x is time, in UTC."""
    locator = AutoDateLocator(minticks=3, maxticks=8, tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    axes.set_xlabel("time (UTC)")


def mark_stages(axes: Axes, curves: Sequence[Curve]) -> None:
    """Mark where each stage begins, with its name above the axes."""
    begins = sorted(
        {
            (span.first_step * curve.global_batch_tokens, span.name)
            for curve in curves
            for span in curve.stages
            if span.name
        }
    )
    low, high = axes.get_xlim()
    before, row = -np.inf, 0
    for tokens, name in begins:
        if tokens > low:
            axes.axvline(tokens, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        place = (max(tokens, low) - low) / (high - low)
        late = place > 0.85
        row = row + 1 if place - before < 0.18 else 0
        before = place
        axes.annotate(
            name,
            (1.0 if late else place, 1.0),
            xycoords="axes fraction",
            xytext=(0 if late else 2, 3 + 10 * row),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=8,
            color="#555555",
        )


def cut(axes: Axes, lines: Sequence[tuple[Floats, Floats]]) -> None:
    """Choose the y axis by what the lines do after their first part, and tell how far they go beyond it."""
    x = np.concatenate([x for x, _ in lines]) if lines else np.array([])
    y = np.concatenate([y for _, y in lines]) if lines else np.array([])
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) < 2:
        return
    later = y[x >= x.min() + _EARLY * (x.max() - x.min())]
    if len(later) < 2:
        return
    low, high = float(y.min()), float(np.quantile(later, 0.9995) if len(later) > 4000 else later.max())
    margin = max(0.06 * (high - low), 1e-6 * abs(high), 1e-9)
    axes.set_ylim(low - margin, high + margin)
    if y.max() > high + margin:
        text = f"\N{UPWARDS ARROW} up to {y.max():.3g}"
        axes.annotate(text, (0.012, 0.97), xycoords="axes fraction", va="top", fontsize=8, color="#777777")
