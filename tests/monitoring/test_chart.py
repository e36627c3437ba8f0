"""The chart as Helm renders it: monitoring is off by default, whole when asked for, left out where the cluster does not
know it; and the operator's pod."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from skywork_operator.render import Defaults
from skywork_operator.render.stage import stage_objects
from skywork_trainer.config import AGENT_PORT

from dev.monitoring.files import CHART, DASHBOARDS, RULES, alerts
from tests.monitoring.helm import EVERYTHING, KINDS, helm, of_kind, rendered
from tests.monitoring.promtool import promtool
from tests.unit.operator.build import run


def dashboards(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for found in of_kind("ConfigMap", objects) if "-dashboard-" in found["metadata"]["name"]]


def trainer_pod() -> dict[str, Any]:
    job = stage_objects(run(), "general", Defaults(image="trainer:test"))[-1]
    template: dict[str, Any] = job["spec"]["template"]
    return template


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    exist = [term["key"] for term in selector.get("matchExpressions", []) if term["operator"] == "Exists"]
    return selector["matchLabels"].items() <= labels.items() and set(exist) <= labels.keys()


def test_by_default_there_is_nothing_of_it() -> None:
    objects = rendered()
    assert not dashboards(objects)
    assert not {found["kind"] for found in objects} & {*KINDS, "Service"}


def test_with_all_values_there_is_everything() -> None:
    objects = rendered(*EVERYTHING)
    assert [len(of_kind(kind, objects)) for kind in (*KINDS, "Service")] == [1, 1, 1, 1]
    assert len(dashboards(objects)) == len(DASHBOARDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_cluster_does_not_know_is_left_out(kind: str) -> None:
    objects = rendered(*EVERYTHING, known=tuple(other for other in KINDS if other != kind))
    assert {found["kind"] for found in objects} & set(KINDS) == set(KINDS) - {kind}
    assert len(dashboards(objects)) == len(DASHBOARDS)


def test_the_service_comes_with_the_monitor_or_by_itself() -> None:
    assert of_kind("Service", rendered("metricsService.enabled=true"))
    assert not of_kind("Service", rendered("serviceMonitor.enabled=true", known=()))


def test_the_service_monitor_finds_the_operator_by_its_service() -> None:
    objects = rendered(*EVERYTHING)
    (monitor,), (service,), (deployment,) = (of_kind(k, objects) for k in ("ServiceMonitor", "Service", "Deployment"))
    assert matches(monitor["spec"]["selector"], service["metadata"]["labels"])
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (endpoint,), (port,) = monitor["spec"]["endpoints"], service["spec"]["ports"]
    assert endpoint["port"] == port["name"] and endpoint["honorLabels"] is True
    ports = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert {"name": port["targetPort"], "containerPort": 9401} in ports


def test_the_pod_monitor_finds_training_pods_and_no_others() -> None:
    (monitor,) = of_kind("PodMonitor", rendered(*EVERYTHING))
    pod = trainer_pod()
    assert matches(monitor["spec"]["selector"], pod["metadata"]["labels"])
    preparing = {key: value for key, value in pod["metadata"]["labels"].items() if key != "skywork.dev/stage"}
    assert not matches(monitor["spec"]["selector"], preparing | {"skywork.dev/prepare": "main"})
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"name": endpoint["port"], "containerPort": AGENT_PORT} in pod["spec"]["containers"][0]["ports"]
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"][0]["targetLabel"] == "node"


def test_the_pod_monitor_looks_where_the_operator_does() -> None:
    (everywhere,) = of_kind("PodMonitor", rendered(*EVERYTHING))
    assert everywhere["spec"]["namespaceSelector"] == {"any": True}
    (named,) = of_kind("PodMonitor", rendered(*EVERYTHING, "watchNamespaces={research,teaching}"))
    assert named["spec"]["namespaceSelector"] == {"matchNames": ["research", "teaching"]}


def test_without_the_prometheus_operator_the_annotations_do() -> None:
    (deployment,) = of_kind("Deployment", rendered())
    assert deployment["spec"]["template"]["metadata"]["annotations"].items() >= {
        ("prometheus.io/scrape", "true"), ("prometheus.io/port", "9401"),
    }  # fmt: skip
    assert trainer_pod()["metadata"]["annotations"].items() >= {
        ("prometheus.io/scrape", "true"), ("prometheus.io/port", str(AGENT_PORT)),
    }  # fmt: skip


def test_rules_reach_the_cluster_as_they_are_committed(tmp_path: Path) -> None:
    (rule,) = of_kind("PrometheusRule", rendered(*EVERYTHING))
    committed = [group.group() for groups in RULES.values() for group in groups]
    by_name = {group["name"]: group for group in rule["spec"]["groups"]}
    assert by_name == {group["name"]: group for group in committed}
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    assert promtool("check", "rules", str(path)).returncode == 0


def test_runbooks_are_where_the_values_say() -> None:
    base = "https://wiki.example/skywork"
    (rule,) = of_kind("PrometheusRule", rendered(*EVERYTHING, f"prometheusRule.runbooks={base}"))
    rules = [found for group in rule["spec"]["groups"] for found in group["rules"] if "alert" in found]
    assert len(rules) == len(alerts())
    for found in rules:
        assert found["annotations"]["runbook_url"] == f"{base}#{found['alert'].lower()}"


def test_alerts_can_be_left_out_by_name() -> None:
    (rule,) = of_kind("PrometheusRule", rendered(*EVERYTHING, "prometheusRule.disabledAlerts={SkyworkPlateau}"))
    names = {found.get("alert") for group in rule["spec"]["groups"] for found in group["rules"]}
    assert {alert.name for alert in alerts()} - names == {"SkyworkPlateau"}


def test_dashboards_reach_the_cluster_as_they_are_committed() -> None:
    found = dashboards(rendered(*EVERYTHING, "grafanaDashboards.namespace=grafana"))
    for config_map in found:
        ((name, text),) = config_map["data"].items()
        assert json.loads(text) == json.loads((CHART / "dashboards" / name.removeprefix("skywork-")).read_text())
        assert config_map["metadata"]["namespace"] == "grafana"
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert config_map["metadata"]["annotations"] == {"grafana_folder": "Skywork"}
    assert len(found) == len(DASHBOARDS)


def test_monitors_and_rules_carry_the_labels_that_a_prometheus_selects_by() -> None:
    labels = [f"{value}.labels.release=kps" for value in ("serviceMonitor", "podMonitor", "prometheusRule")]
    objects = rendered(*EVERYTHING, *labels)
    for kind in KINDS:
        assert of_kind(kind, objects)[0]["metadata"]["labels"]["release"] == "kps"


@pytest.mark.parametrize("values", [(), EVERYTHING], ids=["default", "everything"])
def test_helm_finds_nothing_to_say(values: tuple[str, ...]) -> None:
    ended = helm("lint --strict", *values)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("serviceMonitor.enabled=maybe", "serviceMonitor.enabled"),
        ("podMonitor.interval=often", "podMonitor.interval"),
        ("podMonitor.port=9400", "port"),
        ("prometheusRule.runbooks=", "prometheusRule.runbooks"),
        ("prometheusRule.disabledAlerts={SkyworkPlateu}", "SkyworkPlateu"),
        ("grafanaDashboards.label=x", "label"),
        ("grafanaDashboards.labels.grafana_dashboard=1", "grafana_dashboard"),
        ("monitoring.enabled=true", "monitoring"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, named: str) -> None:
    ended = helm("template", "prometheusRule.enabled=true", value)
    assert ended.returncode != 0
    assert named.split(".")[-1] in ended.stderr and named.split(".")[0] in ended.stderr


# -- the operator's pod ----------------------------------------------------------------------------------------------


def test_a_dead_node_keeps_no_operator_whatever_else_its_pod_tolerates() -> None:
    (deployment,) = of_kind("Deployment", rendered("tolerations[0].key=gpu", "tolerations[0].operator=Exists"))
    tolerated = {taint["key"]: taint for taint in deployment["spec"]["template"]["spec"]["tolerations"]}
    assert tolerated.keys() == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "gpu"}
    assert tolerated["node.kubernetes.io/unreachable"]["tolerationSeconds"] == 0
    assert tolerated["node.kubernetes.io/not-ready"]["tolerationSeconds"] == 0


def test_two_operators_share_no_node_where_there_is_another() -> None:
    (deployment,) = of_kind("Deployment", rendered("replicas=2"))
    template = deployment["spec"]["template"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert matches(spread["labelSelector"], template["metadata"]["labels"])
    assert spread["topologyKey"] == "kubernetes.io/hostname"
