"""Recording and alerting rules as Prometheus reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

RUNBOOKS = "docs/runbooks.md"
"""What the chart replaces by the address where that page is served."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert; `lasting` is how long its expression must hold."""

    name: str
    expr: str
    lasting: str = "0m"
    severity: Literal["critical", "warning", "info"]
    summary: str
    description: str

    def rule(self) -> dict[str, Any]:
        """Return the rule."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}#{self.name.lower()}",
            },
        }


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One expression that is evaluated ahead, under a name of its own."""

    name: str
    expr: str

    def rule(self) -> dict[str, Any]:
        """Return the rule."""
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rules that are evaluated one after another."""

    name: str
    rules: Sequence[Alert | Recording]
    interval: str = "30s"

    def group(self) -> dict[str, Any]:
        """Return the group."""
        return {"name": self.name, "interval": self.interval, "rules": [rule.rule() for rule in self.rules]}
