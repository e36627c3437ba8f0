"""A whole dashboard: variables, annotations, links and panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dev.monitoring.panels import DATASOURCE, Row, placed

_SCHEMA_VERSION = 39
"""Grafana 11; later releases migrate it when they load it."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """Values of a label, to choose from."""

    name: str
    metric: str
    """Selector of the series that have it; may name variables before this one."""
    label: str = ""
    """Label whose values these are; the variable's name unless given."""
    several: bool = True
    """Whether more than one, and all, may be chosen."""

    def model(self) -> dict[str, Any]:
        """Return the variable."""
        query = f"label_values({self.metric}, {self.label or self.name})"
        chosen = {"text": ["All"], "value": ["$__all"]} if self.several else {}
        return {
            "name": self.name,
            "label": self.name,
            "type": "query",
            "datasource": DATASOURCE,
            "definition": query,
            "query": {"query": query, "refId": "Variables"},
            "refresh": 2,
            "sort": 1,
            "multi": self.several,
            "includeAll": self.several,
            "current": chosen,
            "options": [],
            "regex": "",
            "hide": 0,
        }


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """Moments, or spans, in which an expression has a value."""

    name: str
    expr: str
    color: str
    title: str
    text: str = ""
    shown: bool = True

    def model(self) -> dict[str, Any]:
        """Return the annotation."""
        return {
            "name": self.name,
            "datasource": DATASOURCE,
            "enable": self.shown,
            "hide": False,
            "expr": self.expr,
            "iconColor": self.color,
            "step": "30s",
            "titleFormat": self.title,
            "textFormat": self.text,
            "tagKeys": "",
        }


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One dashboard; its uid is part of the address people keep."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    annotations: Sequence[Annotation] = ()
    since: str = "now-24h"

    def model(self) -> dict[str, Any]:
        """Return the JSON model, without an id: that is the server's to give."""
        datasource = {
            "name": "datasource",
            "label": "datasource",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "hide": 0,
            "multi": False,
            "includeAll": False,
            "current": {},
            "options": [],
        }
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["skywork"],
            "schemaVersion": _SCHEMA_VERSION,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": self.since, "to": "now"},
            "timezone": "browser",
            "links": [_LINKS],
            "annotations": {"list": [annotation.model() for annotation in self.annotations]},
            "templating": {"list": [datasource, *(variable.model() for variable in self.variables)]},
            "panels": placed(self.rows),
        }


_LINKS = {
    "title": "Skywork",
    "type": "dashboards",
    "tags": ["skywork"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}
