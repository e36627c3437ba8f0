"""Rules and expressions, as promtool judges them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.monitoring.expressions import Expression, expressions
from dev.monitoring.files import CHART, alerts
from dev.monitoring.rules import Alert
from dev.monitoring.sometimes import EMPTY_WITHOUT
from dev.monitoring.walk import Shown
from tests.monitoring.cases import ALERTS, PANELS, Case, Series
from tests.monitoring.promtool import promtool

RULES = sorted((CHART / "rules").glob("*.yaml"))
LONGEST_MINUTES = 300
_SHOWN = Shown(namespace="research", run="demo", start=0, end=1, rate_interval="5m")


def rendered(template: str, case: Case) -> str:
    """The template as Prometheus would fill it in."""
    words = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: case.labels[found[1]], template)
    return re.sub(r"\{\{ \$value[^}]*\}\}", case.value, words)


def firing(alert: Alert, case: Case) -> dict[str, Any]:
    rule = alert.rule()
    expected = {
        "exp_labels": rule["labels"] | case.labels,
        "exp_annotations": {name: rendered(text, case) for name, text in rule["annotations"].items()},
    }
    return group(
        case.fires,
        alert_rule_test=[{"eval_time": f"{case.minute}m", "alertname": alert.name, "exp_alerts": [expected]}],
    )


def silent(alert: Alert, what: str, series: Series, since: int) -> dict[str, Any]:
    moments = range(since, LONGEST_MINUTES, 5)
    # A run of synthetic series ends after two hours, and what they say is forgotten five minutes later.
    last = 120 if all(int(re.findall(r"x(\d+)$", values)[0]) <= 120 for values in series.values()) else LONGEST_MINUTES
    tests = [{"eval_time": f"{m}m", "alertname": alert.name, "exp_alerts": []} for m in moments if m <= last]
    return group(series, alert_rule_test=tests, name=what)


def group(series: Series, **tests: Any) -> dict[str, Any]:
    given = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": given, **tests}


def passes(tests: list[dict[str, Any]], folder: Path, rules: list[Path] = RULES) -> str:
    """What promtool says against the tests; nothing when they pass."""
    path = folder / "tests.yaml"
    content = {"rule_files": [str(rule) for rule in rules], "evaluation_interval": "1m", "tests": tests}
    path.write_text(yaml.safe_dump(content))
    ended = promtool("test", "rules", str(path))
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def parsed(found: list[Expression], folder: Path) -> str:
    """What promtool says against the expressions; nothing when all parse."""
    rules = [
        {"record": f"number:{number}", "expr": expression.filled(_SHOWN.variables())}
        for number, expression in enumerate(found)
    ]
    path = folder / "expressions.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    ended = promtool("check", "rules", str(path))
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_promtool_finds_nothing_wrong_with_the_rules(path: Path) -> None:
    ended = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_expression_parses(tmp_path: Path) -> None:
    assert parsed(expressions(), tmp_path) == ""


def test_an_expression_that_does_not_parse_is_noticed(tmp_path: Path) -> None:
    assert "parse error" in parsed([Expression(where="here", text="sum by (run (up)")], tmp_path)


def test_every_alert_has_a_case() -> None:
    assert sorted(alert.name for alert in alerts()) == sorted(ALERTS)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_fires_with_its_words(alert: Alert, tmp_path: Path) -> None:
    assert passes([firing(alert, ALERTS[alert.name])], tmp_path) == ""


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_is_silent_while_all_is_well(alert: Alert, tmp_path: Path) -> None:
    case = ALERTS[alert.name]
    tests = [silent(alert, what, series, case.seen.get(what, 5)) for what, series in case.quiet.items()]
    assert tests
    assert passes(tests, tmp_path) == ""


def test_every_expression_that_may_be_empty_has_a_case() -> None:
    assert sorted(EMPTY_WITHOUT) == sorted(PANELS)


@pytest.mark.parametrize("where", sorted(PANELS))
def test_a_panel_of_trouble_is_filled_by_trouble_and_empty_without(where: str, tmp_path: Path) -> None:
    text = next(found for found in expressions() if found.where == where).filled(_SHOWN.variables())
    counted = {"expr": f"sgn(count({text}) or vector(0))", "eval_time": "10m"}
    tests = []
    for series, some in ((PANELS[where], 1), ({"other": "1x20"}, 0)):
        wanted = [{"labels": "{}", "value": some}]
        tests.append(group(series, promql_expr_test=[counted | {"exp_samples": wanted}]))
    assert passes(tests, tmp_path, []) == ""
