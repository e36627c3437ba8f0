"""What is generated, and where it lies in the chart."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dev.monitoring.dashboard import Dashboard
from dev.monitoring.dashboards.fleet import FLEET
from dev.monitoring.dashboards.nodes import NODES
from dev.monitoring.dashboards.run import RUN_DASHBOARD
from dev.monitoring.operator_rules import OPERATOR_GROUPS
from dev.monitoring.rules import Alert, Group
from dev.monitoring.run_rules import RUN_GROUPS

CHART = Path(__file__).resolve().parents[2] / "charts/skywork-operator"
DASHBOARDS: Mapping[str, Dashboard] = {"fleet": FLEET, "run": RUN_DASHBOARD, "nodes": NODES}
RULES: Mapping[str, tuple[Group, ...]] = {"runs": RUN_GROUPS, "operator": OPERATOR_GROUPS}
_HEAD = "# Written by `make generate` from dev/monitoring; Prometheus and promtool read it as it is.\n"


def generated() -> dict[Path, str]:
    """Return the content of every file that is written, by path."""
    found = {
        CHART / "dashboards" / f"{name}.json": json.dumps(dashboard.model(), indent=2, ensure_ascii=False) + "\n"
        for name, dashboard in DASHBOARDS.items()
    }
    for name, groups in RULES.items():
        found[CHART / "rules" / f"{name}.yaml"] = _HEAD + _yaml({"groups": [group.group() for group in groups]})
    return found


def alerts() -> list[Alert]:
    """Return every alert."""
    groups = (group for groups in RULES.values() for group in groups)
    return [rule for group in groups for rule in group.rules if isinstance(rule, Alert)]


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=110, allow_unicode=True)
