"""What a person sees of a run with kubectl, on a real API server whose nodes and agents are simulated."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.running import Operator, status
from tests.control_plane.simulated import member, passes, reason, remove, run_manifest, trains
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("untainted")
DOMAINS = {"domains": [{"name": name, "uri": f"s3://data/{name}"} for name in ("zh", "en")]}
PLATEAU = {"type": "Plateau", "found": True, "reason": "NoProgress", "message": "no domain falls: end the stage"}


def losses(zh: float, en: float, step: int = 1) -> tuple[dict[str, Any], ...]:
    return (
        {"domain": "zh", "loss": zh, "tokens": 1000, "step": step, "bytes": 4000},
        {"domain": "en", "loss": en, "tokens": 1000, "step": step},
    )


def events(kube: Kube, namespace: str, reason: str) -> list[str]:
    return [e["message"] for e in kube.items("events", "-n", namespace) if e["reason"] == reason]


def test_kubectl_answers_the_daily_questions_of_a_run_that_trains(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    operator = start()
    stages = [stage | {"tokens": "10G"} for stage in run_manifest(namespace)["spec"]["stages"]]
    kube.apply(run_manifest(namespace, validation=DOMAINS, stages=stages))
    trains(kube, namespace)
    member(simulation, namespace, 0).says |= {"validation": losses(2.0, 3.0), "diagnoses": [PLATEAU]}
    said = until(lambda: (s := status(kube, namespace)).get("valLoss") and s.get("eta") and s, 60)
    head, row = (line.split() for line in kube.run("get", "swr", "-n", namespace).splitlines())
    shown = dict(zip(head, row, strict=True))
    assert (shown["STATE"], shown["STAGE"], shown["PROGRESS"]) == ("Training", "general", "0%")
    assert (shown["VAL-LOSS"], shown["NODES"], shown["RESTARTS"]) == ("2.5000", "3/3", "0")
    assert shown["TOKENS"][-1] in "kM" and "d" in shown["ETA"]
    assert said["averagePerplexity"] == "12.18"
    assert {c["type"]: (c["status"], c["reason"]) for c in said["conditions"]}["Plateau"] == ("True", "NoProgress")
    until(lambda: events(kube, namespace, "Plateau"), 30)
    described = kube.run("describe", "skyworkrun", "-n", namespace, "demo")
    for word in ("StageStarted", "GenerationStarted", "first step after", "no domain falls: end the stage"):
        assert word in described
    page = operator.page(operator.metrics, "/metrics")
    label = f'namespace="{namespace}",run="demo"'
    spent = [line for line in page.splitlines() if line.startswith("skywork_run_time_seconds_total{" + label)]
    assert len(spent) == 8
    assert f'skywork_run_validation_bpb{{domain="zh",{label}}} 0.7213' in page
    assert "skywork_operator_is_leader 1.0" in page
    print(kube.run("get", "swr", "-n", namespace, "-o", "wide"), described[-3000:])
    remove(kube, namespace)
    until(lambda: label not in operator.page(operator.metrics, "/metrics"), 30)


def test_an_annotation_has_all_domains_measured_once_in_the_same_generation(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    start()
    kube.apply(run_manifest(namespace, validation=DOMAINS))
    before = trains(kube, namespace)
    first = member(simulation, namespace, 0)
    first.says |= {"validation": losses(2.0, 3.0, step=7)}
    annotate = ("annotate", "skyworkrun", "-n", namespace, "demo", "--overwrite")
    kube.run(*annotate, "skywork.dev/validate=1")
    # Not the next look at the run, which would come anyway: the watch brings the annotation.
    asked = time.monotonic()
    until(lambda: first.membership and first.membership.validate_request == "1", 30, 0.05)
    assert time.monotonic() - asked < 4.0
    done = until(lambda: status(kube, namespace).get("requestedValidation"), 30)
    assert (done["request"], done["step"]) == ("1", 7)
    assert until(lambda: events(kube, namespace, "Validated"), 30) == ["as asked, at step 7: zh 2.0000, en 3.0000"]
    others = [p.membership for p in simulation.of(namespace) if p.uid != first.uid]
    assert {word.validate_request for word in others if word} == {""}
    kube.run(*annotate, "skywork.dev/validate=2")
    until(lambda: status(kube, namespace)["requestedValidation"]["request"] == "2", 30)
    until(lambda: len(events(kube, namespace, "Validated")) == 2, 30)
    assert status(kube, namespace)["generation"] == before["generation"]
    remove(kube, namespace)


def test_a_run_that_waits_is_looked_at_again_and_again_and_never_written(
    kube: Kube, namespace: str, start: Callable[[], Operator], simulation: Simulation
) -> None:
    operator = start()
    kube.apply(run_manifest(namespace))
    trains(kube, namespace)
    kube.run("patch", "skyworkrun", "-n", namespace, "demo", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(lambda: status(kube, namespace)["state"] == "Suspended", 60)
    assert reason(kube, namespace) == "Suspended"

    def version() -> str:
        return str(kube.get("skyworkrun", "-n", namespace, "demo")["metadata"]["resourceVersion"])

    until(lambda: not simulation.of(namespace), 30)
    settled = [version()]
    until(lambda: settled.append(version()) or settled[-1] == settled[-2], 30, 2.0)
    seen, label = passes(operator), f'namespace="{namespace}",run="demo",state="idle"'

    def idle() -> float:
        page = operator.page(operator.metrics, "/metrics").splitlines()
        return next(float(line.split()[-1]) for line in page if label in line)

    before, written = idle(), status(kube, namespace)
    for number in range(3):
        kube.run("label", "skyworkrun", "-n", namespace, "demo", f"look={number}", "--overwrite")
        until(lambda count=number: passes(operator) > seen + count, 30)
    assert status(kube, namespace) == written
    assert idle() > before
    assert float(written["time"]["idle"]) < idle()
    remove(kube, namespace)
