"""Alerts that tell a person what is wrong and where to read on."""

import re
from pathlib import Path

import pytest

from dev.monitoring.files import RULES, alerts
from dev.monitoring.rules import Alert

RUNBOOKS = (Path(__file__).resolve().parents[3] / "docs/runbooks.md").read_text()
HEADINGS = re.findall(r"^## (Skywork\w+)$", RUNBOOKS, re.MULTILINE)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_has_words_and_a_runbook(alert: Alert) -> None:
    rule = alert.rule()
    assert re.fullmatch(r"Skywork[A-Z]\w+", alert.name)
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    words = rule["annotations"]
    assert 10 < len(words["summary"]) < 120 and not words["summary"].endswith(".")
    assert words["description"].endswith(".")
    assert words["runbook_url"] == f"docs/runbooks.md#{alert.name.lower()}"


def test_runbooks_and_alerts_are_the_same() -> None:
    assert sorted(HEADINGS) == sorted(alert.name for alert in alerts())


@pytest.mark.parametrize("name", HEADINGS)
def test_a_runbook_says_what_it_means_how_to_look_and_what_to_do(name: str) -> None:
    section = RUNBOOKS.split(f"## {name}\n")[1].split("\n## ")[0]
    for part in ("**Means.** ", "**Look.** ", "**Do.** "):
        assert section.count(part) == 1, part


def test_every_diagnosis_of_a_run_has_an_alert() -> None:
    read = " ".join(alert.expr for alert in alerts())
    diagnoses = (
        "DomainsDiverging", "Forgetting", "Plateau", "GapGrowing", "LossSpiking", "DataStarved", "ThroughputLow",
        "ValidationIncomplete", "CheckpointStale", "CheckpointCorrupt", "DataRepeated", "Straggling",
    )  # fmt: skip
    assert [type for type in diagnoses if f'"{type}"' not in read] == []


def test_groups_and_rules_have_names_of_their_own() -> None:
    groups = [group for groups in RULES.values() for group in groups]
    assert len({group.name for group in groups}) == len(groups)
    names = [rule.name for group in groups for rule in group.rules]
    assert sorted(set(names)) == sorted(names)
