"""Names of metrics: what dashboards, rules and documents speak of is exported, and what is exported is documented."""

import re
from pathlib import Path

import pytest

from dev.monitoring.expressions import expressions
from dev.monitoring.files import RULES
from dev.monitoring.promql import family, names
from dev.monitoring.rules import Recording
from tests.monitoring.exporters import OperatorPage, TrainerPod, exported, families

DOCS = Path(__file__).resolve().parents[3] / "docs"
_METRIC = re.compile(r"`((?:[a-z_]+:)?skywork_[a-z0-9_:]+)(?:\{[^`]*\})?`")
_LABELLED = re.compile(r"`(skywork_[a-z0-9_]+)\{([a-z_,]+)\}`")
_COMMON = {"namespace", "run", "stage", "node", "local_rank", "le"}
"""Labels that the tables' headings tell of."""
_NO_METRIC = re.compile(r"^skywork_(operator|trainer)$")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return exported(tmp_path_factory.mktemp("pod"))


def recorded() -> set[str]:
    groups = (group for groups in RULES.values() for group in groups)
    return {rule.name for group in groups for rule in group.rules if isinstance(rule, Recording)}


def spoken_of(page: Path) -> set[str]:
    return {name for name in _METRIC.findall(page.read_text()) if not _NO_METRIC.match(name)}


def test_every_metric_of_dashboards_and_rules_is_exported_or_recorded(known: dict[str, str]) -> None:
    known_names = known.keys() | recorded()
    missing = {
        f"{expression.where}: {name}"
        for expression in expressions()
        for name in names(expression.text)
        if name not in known_names and not (known.get(family(name)) == "histogram" and family(name) != name)
    }
    assert sorted(missing) == []


def test_a_histogram_is_read_by_its_parts_only(known: dict[str, str]) -> None:
    used = {name for expression in expressions() for name in names(expression.text)}
    assert sorted(name for name in used if known.get(name) == "histogram") == []


def test_every_metric_that_the_documents_name_is_exported_or_recorded(known: dict[str, str]) -> None:
    known_names = known.keys() | recorded()
    pages = sorted(DOCS.glob("*.md"))
    missing = {f"{page.name}: {name}" for page in pages for name in spoken_of(page) if name not in known_names}
    assert sorted(missing) == []


def test_every_exported_or_recorded_metric_is_documented(known: dict[str, str]) -> None:
    assert sorted((known.keys() | recorded()) - spoken_of(DOCS / "operations.md")) == []


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("rate(skywork_train_steps_total[5m])", {"skywork_train_steps_total"}),
        ('skywork_run_condition{type="skywork_no"} == 1', {"skywork_run_condition"}),
        ("namespace_run:skywork_run_restarts:sum > 5", {"namespace_run:skywork_run_restarts:sum"}),
        ("sum by (le) (rate(skywork_a_seconds_bucket[1m]))", {"skywork_a_seconds_bucket"}),
        ("up", set()),
    ],
)
def test_names_are_read_out_of_an_expression(expression: str, found: set[str]) -> None:
    assert names(expression) == found


def test_documented_labels_are_those_that_are_exported(tmp_path: Path) -> None:
    pod = TrainerPod(tmp_path)
    pod.trouble()
    own: dict[str, set[str]] = {}
    for found in families((pod.page, OperatorPage(trouble=True).page)):
        name = found.name + ("_total" if found.type == "counter" else "")
        own.setdefault(name, set()).update(label for sample in found.samples for label in sample.labels)
    text = (DOCS / "operations.md").read_text()
    said = {name: set(labels.split(",")) for name, labels in _LABELLED.findall(text)}
    spoken = spoken_of(DOCS / "operations.md") & {name for name in own if own[name]}
    for name in sorted(spoken):
        common = {"namespace", "run"} if name.startswith("skywork_run_") else _COMMON
        assert own[name] - common == said.get(name, set()), name
    assert len(spoken) > 80
