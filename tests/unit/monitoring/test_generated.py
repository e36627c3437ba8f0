"""What is committed in the chart is what the code generates."""

from dev.monitoring.files import CHART, DASHBOARDS, RULES, generated


def test_committed_dashboards_and_rules_equal_what_is_generated() -> None:
    for path, content in generated().items():
        assert path.read_text() == content, f"{path.relative_to(CHART)}: run make generate"


def test_nothing_else_lies_beside_them() -> None:
    found = {path for folder in ("dashboards", "rules") for path in (CHART / folder).iterdir()}
    assert found == set(generated())
    assert len(found) == len(DASHBOARDS) + len(RULES)
