"""Dashboards that a Grafana takes as they are, and that a person can read."""

import json
import re
from itertools import combinations
from typing import Any

import pytest

from dev.monitoring.expressions import expressions
from dev.monitoring.files import CHART, DASHBOARDS

MODELS = {name: json.loads((CHART / "dashboards" / f"{name}.json").read_text()) for name in DASHBOARDS}
# Of a Prometheus query these are the server's own; all others must be variables of the dashboard.
BUILT_IN = {"__rate_interval"}
UNITS = {
    "short", "none", "s", "bytes", "Bps", "percentunit", "sci", "flops", "ops", "reqps", "dateTimeFromNow",
    "suffix: tok/s",
}  # fmt: skip


def panels(model: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in model["panels"] if panel["type"] != "row"]


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    apart = (
        one["x"] + one["w"] <= other["x"]
        or other["x"] + other["w"] <= one["x"]
        or one["y"] + one["h"] <= other["y"]
        or other["y"] + other["h"] <= one["y"]
    )
    return not apart


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = MODELS[request.param]
    return found


def test_a_dashboard_has_a_fixed_uid_and_nothing_that_a_server_gives(model: dict[str, Any]) -> None:
    assert re.fullmatch(r"skywork-[a-z]+", model["uid"])
    assert "id" not in model and "__inputs" not in model and "__requires" not in model
    assert model["title"].startswith("Skywork / ") and model["description"].endswith(".")
    assert model["tags"] == ["skywork"]


def test_panels_have_numbers_of_their_own(model: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in model["panels"]]
    assert len(set(numbers)) == len(numbers)
    titles = [panel["title"] for panel in panels(model)]
    assert sorted(set(titles)) == sorted(titles)


def test_panels_lie_on_the_grid_and_on_no_other(model: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in model["panels"]]
    for place in places:
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0
    for one, other in combinations(model["panels"], 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def test_lines_are_full_and_their_panels_equally_high(model: dict[str, Any]) -> None:
    lines: dict[int, list[dict[str, int]]] = {}
    for panel in model["panels"]:
        lines.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    for y, places in lines.items():
        assert sum(place["w"] for place in places) == 24, y
        assert len({place["h"] for place in places}) == 1, y


def test_every_panel_says_what_it_shows_and_in_which_unit(model: dict[str, Any]) -> None:
    for panel in panels(model):
        assert panel["description"].rstrip().endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]


def test_every_query_goes_to_the_datasource_that_is_chosen(model: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*panels(model), *(target for panel in panels(model) for target in panel["targets"])]
    asking += [*model["annotations"]["list"]]
    asking += [variable for variable in model["templating"]["list"] if variable["type"] == "query"]
    assert [found for found in asking if found["datasource"] != chosen] == []
    assert model["templating"]["list"][0]["name"] == "datasource"


def test_only_variables_that_exist_are_used(model: dict[str, Any]) -> None:
    known = {variable["name"] for variable in model["templating"]["list"]} | BUILT_IN
    used = set(re.findall(r'"(?:expr|query|definition)": "(.*)"', json.dumps(model, indent=0)))
    assert {name for text in used for name in re.findall(r"\$(\w+)", text)} <= known


def test_every_chosen_value_narrows_some_panel(model: dict[str, Any]) -> None:
    queries = " ".join(target["expr"] for panel in panels(model) for target in panel["targets"])
    for variable in model["templating"]["list"][1:]:
        assert f"${variable['name']}" in queries, variable["name"]


def test_a_variable_of_several_values_is_matched_by_regular_expression(model: dict[str, Any]) -> None:
    several = {variable["name"]: variable["multi"] for variable in model["templating"]["list"]}
    for panel in panels(model):
        for target in panel["targets"]:
            for operator, name in re.findall(r'(=~|=)"\$(\w+)"', target["expr"]):
                assert (operator == "=~") == several[name], (panel["title"], name)


def test_rates_are_over_the_interval_that_grafana_works_out(model: dict[str, Any]) -> None:
    for panel in panels(model):
        for target in panel["targets"]:
            windows = set(re.findall(r"(?:rate|increase)\([^\[]*\[([^\]]+)\]", target["expr"]))
            assert windows <= {"$__rate_interval"}, panel["title"]


def test_legends_name_labels_that_the_query_keeps(model: dict[str, Any]) -> None:
    for panel in panels(model):
        for target in panel["targets"]:
            kept = {
                label.strip() for found in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in found.split(",")
            }
            kept |= {"namespace", "run"} if "namespace_run:" in target["expr"] else set()
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= kept, (panel["title"], target["refId"])


def test_a_table_shows_what_it_asks_for() -> None:
    table = next(panel for panel in panels(MODELS["fleet"]) if panel["title"] == "Runs")
    values = {f"Value #{target['refId']}" for target in table["targets"][2:]}
    shown = {override["matcher"]["options"] for override in table["fieldConfig"]["overrides"]}
    assert shown == values | {"namespace", "run", "state", "stage"}


def test_uids_and_places_of_expressions_are_unique() -> None:
    assert len({model["uid"] for model in MODELS.values()}) == len(MODELS)
    places = [expression.where for expression in expressions()]
    assert sorted(set(places)) == sorted(places)
