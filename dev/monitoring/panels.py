"""Panels of a Grafana dashboard, as the JSON model has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
_LOGARITHMIC = {"type": "log", "log": 2}
Kind = Literal["timeseries", "stat", "table", "xychart", "state-timeline", "bargauge"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One expression of a panel; an instant one is asked for the end of the time that is shown."""

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel, before it has a place."""

    title: str
    description: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    least: float | None = None
    most: float | None = None
    stacked: bool = False
    steps: Sequence[tuple[float | None, str]] = ()
    """Colours from a value on."""
    logarithmic: bool = False
    right: str = ""
    """Name of the series that has the axis on the right, and logarithmic."""
    text: bool = False
    """Of a stat: show the series' names, not their values."""
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a table: heading and unit of each field, in their order."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Of a table: address behind the cells of a column."""

    def model(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return the panel at a place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": self._defaults(), "overrides": self._overrides()},
            "options": self._options(),
            "targets": [self._target(index, query) for index, query in enumerate(self.queries)],
            "transformations": self._transformations(),
        }

    def _target(self, index: int, query: Query) -> dict[str, Any]:
        return {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": query.instant,
            "range": not query.instant,
            "format": "table" if self.kind == "table" else "time_series",
        }

    def _defaults(self) -> dict[str, Any]:
        steps = self.steps or ((None, "blue" if self.kind == "stat" else "green"),)
        defaults: dict[str, Any] = {
            "unit": self.unit,
            "color": {"mode": "thresholds" if self.kind in ("stat", "bargauge") else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]},
            "custom": self._custom(),
        }
        if self.least is not None:
            defaults["min"] = self.least
        if self.most is not None:
            defaults["max"] = self.most
        return defaults

    def _custom(self) -> dict[str, Any]:
        if self.kind == "timeseries":
            return {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 40 if self.stacked else 0,
                "showPoints": "auto",
                "spanNulls": False,
                "scaleDistribution": _LOGARITHMIC if self.logarithmic else {"type": "linear"},
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            }
        if self.kind == "xychart":
            return {"show": "points+lines", "pointSize": {"fixed": 4}, "lineWidth": 1}
        if self.kind == "state-timeline":
            return {"fillOpacity": 70, "lineWidth": 0}
        return {}

    def _overrides(self) -> list[dict[str, Any]]:
        if self.right:
            axis: list[dict[str, Any]] = [
                {"id": "custom.axisPlacement", "value": "right"},
                {"id": "custom.scaleDistribution", "value": _LOGARITHMIC},
            ]
            return [_override(self.right, axis)]
        if self.kind == "xychart":
            return [_override("tokens", [{"id": "unit", "value": "short"}])]
        found = []
        for name, (heading, unit) in self.columns.items():
            properties: list[dict[str, Any]] = [{"id": "displayName", "value": heading}, {"id": "unit", "value": unit}]
            if name in self.links:
                link = {"title": "Open", "url": self.links[name], "targetBlank": False}
                properties.append({"id": "links", "value": [link]})
            found.append(_override(name, properties))
        return found

    def _options(self) -> dict[str, Any]:
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        if self.kind == "timeseries":
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        if self.kind == "xychart":
            x = {"matcher": {"id": "byName", "options": "tokens"}}
            return {"mapping": "auto", "series": [{"x": x}], "legend": legend, "tooltip": {"mode": "single"}}
        if self.kind == "state-timeline":
            return {
                "showValue": "never",
                "mergeValues": True,
                "rowHeight": 0.8,
                "legend": legend | {"showLegend": False},
            }
        if self.kind == "table":
            return {"showHeader": True, "cellHeight": "sm"}
        shown = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        if self.kind == "bargauge":
            return {"reduceOptions": shown, "orientation": "horizontal", "displayMode": "basic"}
        return {
            "reduceOptions": shown,
            "textMode": "name" if self.text else "auto",
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "center",
        }

    def _transformations(self) -> list[dict[str, Any]]:
        if self.kind == "xychart":
            return [{"id": "joinByField", "options": {"byField": "Time", "mode": "inner"}}]
        if self.kind != "table":
            return []
        # Times, and labels that no column shows, would only push the others out of sight.
        kept = {"includeByName": dict.fromkeys(self.columns, True)}
        order = {"indexByName": {name: place for place, name in enumerate(self.columns)}}
        return [{"id": "merge", "options": {}}, {"id": "organize", "options": {**kept, **order}}]


def _override(field_name: str, properties: list[dict[str, Any]]) -> dict[str, Any]:
    return {"matcher": {"id": "byName", "options": field_name}, "properties": properties}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels under one heading, which fill lines from left to right."""

    title: str
    panels: Sequence[Panel]


def placed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return all panels with their places and numbers; a line is as high as its highest panel."""
    found: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        heading = {"id": len(found) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": []}
        found.append({**heading, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y, x, line = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                y, x, line = y + line, 0, 0
            found.append(panel.model(len(found) + 1, x, y))
            x, line = x + panel.width, max(line, panel.height)
        y += line
    return found
