"""Every expression that is committed: panels, variables, annotations, recording rules and alerts."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dev.monitoring.files import CHART

_VALUES = re.compile(r"label_values\((?P<series>.*), (?P<label>\w+)\)")
_VARIABLE = re.compile(r"\$(\w+)")


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One expression, and where it is read."""

    where: str
    """`run/Learning rate/A`, `run/variable/stage`, `run/annotation/Stages`, `alert/SkyworkRunFailed`, `record/…`."""
    text: str

    def filled(self, variables: Mapping[str, str]) -> str:
        """Return it with its variables replaced; raises KeyError naming one that has no value."""
        return _VARIABLE.sub(lambda found: variables[found[1]], self.text)


def expressions(chart: Path = CHART) -> list[Expression]:
    """Return all expressions of the chart's dashboards and rules, as they are committed."""
    found: list[Expression] = []
    for path in sorted((chart / "dashboards").glob("*.json")):
        found += _of_dashboard(path.stem, json.loads(path.read_text()))
    for path in sorted((chart / "rules").glob("*.yaml")):
        found += _of_rules(yaml.safe_load(path.read_text()))
    return found


def _of_dashboard(name: str, model: dict[str, Any]) -> Iterator[Expression]:
    for panel in model["panels"]:
        for target in panel.get("targets", ()):
            yield Expression(where=f"{name}/{panel['title']}/{target['refId']}", text=target["expr"])
    for annotation in model["annotations"]["list"]:
        yield Expression(where=f"{name}/annotation/{annotation['name']}", text=annotation["expr"])
    for variable in model["templating"]["list"]:
        if variable["type"] == "query":
            yield Expression(where=f"{name}/variable/{variable['name']}", text=_label_values(variable["definition"]))


def _label_values(query: str) -> str:
    """Return an expression that has as many series as the variable has values: none where no series has the label."""
    parts = _VALUES.fullmatch(query)
    if parts is None:
        raise ValueError(f"{query!r} is no label_values(SERIES, LABEL)")
    return f"count by ({parts['label']}) ({parts['series']}) unless count({parts['series']})"


def _of_rules(content: dict[str, Any]) -> Iterator[Expression]:
    for group in content["groups"]:
        for rule in group["rules"]:
            kind = "alert" if "alert" in rule else "record"
            yield Expression(where=f"{kind}/{rule[kind]}", text=rule["expr"])
