"""Draws the dashboards of a run as pictures, without a Grafana: `python -m dev.monitoring.draw`.

Rough, but with the same queries, places, legends and units: enough to see what a person could not read.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dev.monitoring.expressions import Expression
from dev.monitoring.files import CHART, DASHBOARDS
from dev.monitoring.walk import Shown, ranged

_COLUMN, _LINE, _EDGE = 60, 34, 6
"""Pixels of a column and of a line of the grid, and around a panel."""
_COLOURS = (
    "#2f7ed8",
    "#d9534f",
    "#3c9d3c",
    "#e69f00",
    "#8e44ad",
    "#16a2b8",
    "#7f6000",
    "#e377c2",
    "#666666",
    "#111111",
)
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series of a panel."""

    name: str
    labels: Mapping[str, str]
    query: str
    points: Mapping[float, float]

    @property
    def last(self) -> float:
        """Return the newest value."""
        return self.points[max(self.points)]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where on the picture something is drawn."""

    x: float
    y: float
    width: float
    height: float


def picture(address: str, model: dict[str, Any], shown: Shown) -> str:
    """Return a dashboard as SVG."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in model["panels"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{24 * _COLUMN}" height="{bottom * _LINE}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#f4f5f7"/>'
    ]
    marks = [
        (time, annotation["iconColor"])
        for annotation in model["annotations"]["list"]
        if annotation["enable"]
        for line in _lines(address, [{"refId": annotation["name"], **annotation, "legendFormat": ""}], shown)
        for time in line.points
        if time - shown.step_seconds not in line.points
    ]
    for panel in model["panels"]:
        place = panel["gridPos"]
        box = Box(x=place["x"] * _COLUMN, y=place["y"] * _LINE, width=place["w"] * _COLUMN, height=place["h"] * _LINE)
        if panel["type"] == "row":
            parts.append(_text(box.x + _EDGE, box.y + 22, panel["title"], size=15))
        else:
            parts += _panel(panel, _lines(address, panel["targets"], shown), box, shown, marks)
    return "\n".join([*parts, "</svg>"])


def _lines(address: str, targets: Sequence[dict[str, Any]], shown: Shown) -> list[Line]:
    found = []
    for target in targets:
        for series in ranged(address, Expression(where=target["refId"], text=target["expr"]), shown):
            labels = {key: value for key, value in series["metric"].items() if key != "__name__"}
            name = _named(target["legendFormat"], labels)
            points = {float(time): float(value) for time, value in series["values"]}
            found.append(Line(name=name, labels=labels, query=target["refId"], points=points))
    return found


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return _LEGEND.sub(lambda found: labels.get(found[1], ""), legend)


def _panel(
    panel: dict[str, Any], lines: list[Line], box: Box, shown: Shown, marks: list[tuple[float, str]]
) -> Iterator[str]:
    frame = Box(x=box.x + _EDGE / 2, y=box.y + _EDGE / 2, width=box.width - _EDGE, height=box.height - _EDGE)
    yield _rect(frame, "#ffffff", "#d0d4da")
    yield _text(box.x + 10, box.y + 18, panel["title"], size=12)
    inner = Box(x=box.x + 58, y=box.y + 30, width=box.width - 74, height=box.height - 64)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if not lines:
        yield _text(box.x + box.width / 2 - 22, box.y + box.height / 2, "No data", colour="#999999")
    elif panel["type"] == "stat":
        named = panel["options"]["textMode"] == "name"
        newest = max(lines, key=lambda line: max(line.points))
        yield _text(
            box.x + 14, box.y + box.height - 24, newest.name if named else written(newest.last, unit, shown), size=20
        )
    elif panel["type"] == "table":
        yield from _table(panel, lines, box, shown)
    elif panel["type"] == "bargauge":
        yield from _bars(lines, inner, unit, shown)
    elif panel["type"] == "state-timeline":
        yield from _spans(lines, inner, shown)
    elif panel["type"] == "xychart":
        yield from _curves(_against_tokens(lines), inner, panel, None, shown, [])
        yield from _legend(lines[1:], box)
    else:
        drawn = _stacked(lines) if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal" else lines
        yield from _curves(drawn, inner, panel, (shown.start, shown.end), shown, marks)
        yield from _legend(lines, box)


def _curves(
    lines: list[Line],
    box: Box,
    panel: dict[str, Any],
    span: tuple[float, float] | None,
    shown: Shown,
    marks: list[tuple[float, str]],
) -> Iterator[str]:
    """Lines over time, or over whatever the points are keyed by."""
    defaults = panel["fieldConfig"]["defaults"]
    xs = [x for line in lines for x in line.points]
    ys = [y for line in lines for y in line.points.values() if y == y]
    if not ys:
        return
    left, right = span or (min(xs), max(xs))
    low, high = defaults.get("min", min(ys)), max(defaults.get("max", max(ys)), max(ys))
    log = defaults["custom"].get("scaleDistribution", {}).get("type") == "log" and low > 0
    wide, tall = right - left or 1.0, high - low or 1.0

    def height(y: float) -> float:
        return math.log(y / low) / math.log(high / low) if log and high > low else (y - low) / tall

    for share in (0.0, 0.5, 1.0):
        y = box.y + box.height * (1 - share)
        yield f'<path d="M{box.x} {y:.1f}h{box.width}" stroke="#e3e6ea"/>'
        at = low * (high / low) ** share if log else low + share * tall
        yield _text(box.x - 52, y + 4, written(at, defaults["unit"], shown), colour="#555555", size=10)
    for time, colour in marks:
        x = box.x + box.width * (time - left) / wide
        yield f'<path d="M{x:.1f} {box.y}v{box.height}" stroke="{colour}" stroke-dasharray="3 2"/>'
    for number, line in enumerate(lines):
        places = [
            f"{box.x + box.width * (x - left) / wide:.1f},{box.y + box.height * (1 - height(y)):.1f}"
            for x, y in sorted(line.points.items())
            if y == y
        ]
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _stacked(lines: list[Line]) -> list[Line]:
    below: dict[float, float] = {}
    found = []
    for line in lines:
        points = {time: below.get(time, 0.0) + value for time, value in line.points.items()}
        below |= points
        found.append(Line(name=line.name, labels=line.labels, query=line.query, points=points))
    return found


def _against_tokens(lines: list[Line]) -> list[Line]:
    """Join the series with the one called tokens, as the panel's transformation does."""
    tokens = next(line for line in lines if line.name == "tokens").points
    return [
        Line(
            name=line.name,
            labels=line.labels,
            query=line.query,
            points={tokens[time]: value for time, value in line.points.items() if time in tokens},
        )
        for line in lines
        if line.name != "tokens"
    ]


def _bars(lines: list[Line], box: Box, unit: str, shown: Shown) -> Iterator[str]:
    most = max(line.last for line in lines) or 1.0
    for number, line in enumerate(sorted(lines, key=lambda line: -line.last)):
        y = box.y + 18 * number
        width = max(0.55 * box.width * line.last / most, 1)
        yield _rect(Box(x=box.x + 60, y=y, width=width, height=13), "#7eb26d", "none")
        yield _text(box.x - 48, y + 11, f"{line.name}  {written(line.last, unit, shown)}")


def _spans(lines: list[Line], box: Box, shown: Shown) -> Iterator[str]:
    for number, line in enumerate(lines):
        y = box.y + 16 * number
        for time in sorted(line.points):
            x = box.x + 60 + (box.width - 60) * (time - shown.start) / (shown.end - shown.start)
            width = (box.width - 60) * shown.step_seconds / (shown.end - shown.start) + 0.5
            yield _rect(Box(x=x, y=y, width=width, height=11), "#5794f2", "none")
        yield _text(box.x - 48, y + 10, line.name)


def _table(panel: dict[str, Any], lines: list[Line], box: Box, shown: Shown) -> Iterator[str]:
    overrides = panel["fieldConfig"]["overrides"]
    columns = {
        override["matcher"]["options"]: {found["id"]: found["value"] for found in override["properties"]}
        for override in overrides
    }
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for line in lines:
        key = tuple(line.labels.get(name, "") for name in ("alertname", "namespace", "run"))
        row = rows.setdefault(key, {})
        unit = columns.get(f"Value #{line.query}", {}).get("unit", "none")
        row |= {**line.labels, f"Value #{line.query}": written(line.last, unit, shown)}
    width = (box.width - 20) / max(len(columns), 1)
    for number, (name, said) in enumerate(columns.items()):
        x = box.x + 10 + number * width
        yield _text(x, box.y + 40, said["displayName"], colour="#555555")
        for place, row in enumerate(rows.values()):
            yield _text(x, box.y + 60 + 18 * place, row.get(name, ""))


def _legend(lines: list[Line], box: Box) -> Iterator[str]:
    x = box.x + 12.0
    for number, line in enumerate(lines):
        if x > box.x + box.width - 60:
            yield _text(x, box.y + box.height - 14, "…")
            return
        yield _rect(Box(x=x, y=box.y + box.height - 22, width=9, height=9), _COLOURS[number % len(_COLOURS)], "none")
        yield _text(x + 12, box.y + box.height - 14, line.name)
        x += 24 + 6.2 * len(line.name)


def written(value: float, unit: str, shown: Shown) -> str:
    """Return a value as Grafana would about write it in that unit."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "dateTimeFromNow":
        return f"in {written(value / 1000 - shown.end, 's', shown)}"
    if unit == "s" and abs(value) >= 120:
        return f"{value / 3600:.3g} h" if value >= 7200 else f"{value / 60:.3g} min"
    if unit == "sci":
        return f"{value:.2e}"
    suffix = {"s": " s", "bytes": "B", "Bps": "B/s", "suffix: tok/s": " tok/s", "flops": "FLOP/s"}.get(unit, "")
    if unit == "none" and abs(value) < 1e6:
        return f"{value:.4g}" if value != int(value) else str(int(value))
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{suffix.strip()}"
    return f"{value:.3g}{suffix}"


def _rect(box: Box, fill: str, stroke: str) -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def _text(x: float, y: float, text: str, *, colour: str = "#111111", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}">{escape(text)}</text>'


def draw(address: str, shown: Shown, folder: Path) -> list[Path]:
    """Write each dashboard's picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in DASHBOARDS:
        model = json.loads((CHART / "dashboards" / f"{name}.json").read_text())
        path = folder / f"{name}.svg"
        path.write_text(picture(address, model, shown))
        found.append(path)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all dashboards of a run."""
    parser = argparse.ArgumentParser(prog="python -m dev.monitoring.draw", description=__doc__)
    parser.add_argument("address", help="address of a Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--start", type=float, required=True, help="Unix seconds")
    parser.add_argument("--end", type=float, required=True, help="Unix seconds")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    shown = Shown(namespace=options.namespace, run=options.run, start=options.start, end=options.end)
    for path in draw(options.address, shown, options.output):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
