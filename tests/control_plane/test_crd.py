"""The resource as the real API server sees it: what it accepts, what it refuses, and in which words."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from skywork_operator.api.crd import crd, render

from dev.demo.install import ROOT
from dev.demo.kube import CommandError, Kube
from tests.unit.operator.build import SPEC

MANIFESTS = sorted((ROOT / "manifests").glob("*.yaml"))


def manifest(namespace: str, spec: dict[str, Any] = SPEC, name: str = "demo") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "skywork.dev/v1alpha1", "kind": "SkyworkRun", "metadata": metadata, "spec": spec}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example spec with one place set, or removed where the value is None; a path like stages.0.tokens."""
    spec = copy.deepcopy(SPEC)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    at: Any = spec
    for parent in parents:
        at = at[parent]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return spec


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_every_example_is_accepted(kube: Kube, path: Path) -> None:
    loaded = yaml.safe_load(path.read_text())
    namespace = loaded["metadata"]["namespace"]
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kube.run("apply", "--dry-run=server", "-f", str(path))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        pytest.param("model", {"layers": 2}, "model needs a preset", id="a model without preset or geometry"),
        pytest.param("model", {"preset": "gpt-5"}, "spec.model.preset", id="an unknown preset"),
        pytest.param("modle", {"preset": "tiny"}, "modle", id="a misspelt field"),
        pytest.param("tokenizer.uri", "tokenizer.json", "spec.tokenizer.uri", id="a URI without a scheme"),
        pytest.param("trainer.nodes", {"min": 4, "max": 3}, "trainer.nodes.min must not", id="min above max"),
        pytest.param("trainer.nodes", {"min": 1}, 'missing required field "max" in', id="no max"),
        pytest.param("trainer.nodes.max", 0, "spec.trainer.nodes.max", id="no nodes"),
        pytest.param("trainer.nodes.shrinkAfter", "soon", "spec.trainer.nodes.shrinkAfter", id="no duration"),
        pytest.param("trainer.nodes.allowed", [8, 16], "trainer.nodes.allowed must name", id="no size that may be"),
        pytest.param("trainer.nodes.spares", 65, "spec.trainer.nodes.spares", id="too many spares"),
        pytest.param("trainer.nodes.growAfter", "late", "spec.trainer.nodes.growAfter", id="no time to grow after"),
        pytest.param("hangDetection", {"stepTimeout": "5"}, "spec.hangDetection.stepTimeout", id="no time-out"),
        pytest.param("hangDetection", {"stepTimeut": "5m"}, "stepTimeut", id="a misspelt time-out"),
        pytest.param("failurePolicy", {"window": "-1h"}, "spec.failurePolicy.window", id="a window in the past"),
        pytest.param(
            "failurePolicy", {"avoidNodes": {"max": 0}}, "spec.failurePolicy.avoidNodes.max", id="nothing to avoid"
        ),
        pytest.param("scheduling", {"queueName": ""}, "spec.scheduling.queueName", id="a queue without a name"),
        pytest.param("suspend", "yes", "spec.suspend", id="a suspension in words"),
        pytest.param("ttlAfterFinished", "7 days", "spec.ttlAfterFinished", id="a time to live in words"),
        pytest.param("activeDeadline", "1w", "spec.activeDeadline", id="a deadline in weeks"),
        pytest.param("engine", {"zeroStage": 4}, "spec.engine.zeroStage", id="no ZeRO stage"),
        pytest.param("optimizer", {"betas": ["0.9"]}, "spec.optimizer.betas", id="one beta"),
        pytest.param("optimizer", {"epsilon": "small"}, "spec.optimizer.epsilon", id="an epsilon in words"),
        pytest.param("batch.globalTokens", "1000", "batch.globalTokens must be a multiple", id="an uneven batch"),
        pytest.param("batch.sequenceLength", 4, "spec.batch.sequenceLength", id="a sequence too short"),
        pytest.param("sources", [], "spec.sources", id="no sources"),
        pytest.param(
            "sources.1", {"name": "main", "uri": "s3://x/y"}, 'Duplicate value: {"name":"main"}', id="a source twice"
        ),
        pytest.param("stages.0.mixture.0.source", "books", "must name an entry of spec.sources", id="unknown source"),
        pytest.param("stages.0.tokens", "lots", "spec.stages[0].tokens", id="tokens in words"),
        pytest.param("stages.0.learningRate.final", None, "needs peak and final", id="a cosine without an end"),
        pytest.param("stages.1.learningRate.final", "1e-5", "only for schedule Cosine", id="a constant with an end"),
        pytest.param(
            "stages.0.learningRate",
            {"schedule": "Constant"},
            "stages[0].learningRate.peak is missing",
            id="a first stage without a rate",
        ),
        pytest.param("stages.1.mixture.0.share.to", None, "share.to is missing", id="a ramp without an end"),
        pytest.param("stages.1.mixture.0.share.to", "1.5", "must lie in 0..1", id="a share above one"),
        pytest.param(
            "stages.1.mixture.0", {"source": "stem"}, "only one source may go without a share", id="two rests"
        ),
        pytest.param("checkpoints", {}, 'missing required field "uri" in', id="nowhere to save"),
        pytest.param("initialWeights", {"uri": "llama"}, "spec.initialWeights.uri", id="weights without a scheme"),
        pytest.param(
            "startFrom", {"uri": "s3://runs/parent"}, 'missing required field "step" in', id="a fork of no step"
        ),
        pytest.param(
            "startFrom",
            {"uri": "s3://runs/demo", "step": 5},
            "spec.startFrom.uri must not be spec.checkpoints.uri",
            id="a fork of itself",
        ),
        pytest.param(
            "validation",
            {"referenceTokenizer": {}},
            'missing required field "uri" in',
            id="a reference without a URI",
        ),
        pytest.param("validation", {"timeBudget": "5 minutes"}, "spec.validation.timeBudget", id="a budget in words"),
        pytest.param("validation", {"timeBudget": "0s"}, "timeBudget must be more than 0s", id="a budget of nothing"),
        pytest.param(
            "guards",
            {"forgetting": {"domains": ["zh"]}},
            "spec.guards.forgetting.domains must name entries of spec.validation.domains",
            id="forgetting of an unknown domain",
        ),
        pytest.param(
            "guards",
            {"forgetting": {"maxRise": "0.0"}},
            "guards.forgetting.maxRise must be greater than 0",
            id="no rise",
        ),
        pytest.param("guards", {"forgetting": {"maxRise": "-1"}}, "guards.forgetting.maxRise", id="a fall"),
        pytest.param("guards", {"forgetting": {"action": "Rollback"}}, "guards.forgetting.action", id="no such action"),
        pytest.param("model.ropeTheta", "much", "spec.model.ropeTheta", id="a theta in words"),
        pytest.param("checkpoints.keepLast", 0, "spec.checkpoints.keepLast", id="keeping none"),
        pytest.param("checkpoints.every", "often", "spec.checkpoints.every", id="an interval in words"),
        pytest.param(
            "checkpoints",
            {"uri": "s3://runs/demo", "every": "Auto", "everySteps": 10},
            "only one of checkpoints.every, checkpoints.everySteps and checkpoints.everyTokens can hold",
            id="two intervals",
        ),
        pytest.param(
            "checkpoints",
            {"uri": "s3://runs/demo", "localEvery": "30s"},
            "checkpoints.localEvery needs checkpoints.localKeep of at least 1",
            id="local checkpoints of which none is kept",
        ),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field_s_name(
    kube: Kube, namespace: str, path: str, value: Any, named: str
) -> None:
    with pytest.raises(CommandError) as refused:
        kube.apply(manifest(namespace, changed(path, value)))
    assert named in str(refused.value)
    kube.apply(manifest(namespace))


def test_a_name_too_long_for_jobs_and_pods_is_refused(kube: Kube, namespace: str) -> None:
    with pytest.raises(CommandError, match="at most 40 characters"):
        kube.apply(manifest(namespace, name="x" * 41))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("model", {"preset": "skywork-13b"}, "spec.model is immutable"),
        ("sources.0.uri", "s3://data/other", "spec.sources[].uri is immutable"),
        ("sources.0.epochs", {"max": 2}, "spec.sources[].epochs is immutable"),
        ("batch.globalTokens", "2048", "spec.batch is immutable"),
        ("checkpoints.uri", "s3://runs/other", "spec.checkpoints.uri is immutable"),
        ("initialWeights", {"uri": "s3://open/llama"}, "spec.initialWeights is immutable"),
        ("startFrom", {"uri": "s3://runs/parent", "step": 5}, "spec.startFrom is immutable"),
    ],
)
def test_the_past_of_a_run_cannot_be_edited(kube: Kube, namespace: str, path: str, value: Any, named: str) -> None:
    kube.apply(manifest(namespace))
    with pytest.raises(CommandError) as refused:
        kube.apply(manifest(namespace, changed(path, value)))
    assert named in str(refused.value)


def test_the_weights_a_run_began_with_can_neither_be_exchanged_nor_forgotten(kube: Kube, namespace: str) -> None:
    begun = changed("initialWeights", {"uri": "s3://open/llama"})
    kube.apply(manifest(namespace, begun))
    kube.apply(manifest(namespace, begun | {"failurePolicy": {"restartsWithoutProgress": 7}}))
    for other in ({"uri": "s3://open/another"}, None):
        spec = {name: value for name, value in begun.items() if name != "initialWeights"}
        with pytest.raises(CommandError, match=r"spec\.initialWeights is immutable"):
            kube.apply(manifest(namespace, spec | ({"initialWeights": other} if other else {})))


def test_a_run_begins_with_another_s_checkpoint_or_with_weights_not_with_both(kube: Kube, namespace: str) -> None:
    spec = changed("startFrom", {"uri": "s3://runs/parent", "step": 5})
    with pytest.raises(CommandError, match=r"only one of spec\.startFrom and spec\.initialWeights"):
        kube.apply(manifest(namespace, spec | {"initialWeights": {"uri": "s3://open/llama"}}))
    kube.apply(manifest(namespace, spec))
    with pytest.raises(CommandError, match=r"spec\.startFrom is immutable"):
        kube.apply(manifest(namespace, spec | {"startFrom": {"uri": "s3://runs/parent", "step": 6}}))


def test_what_may_change_can_be_changed(kube: Kube, namespace: str) -> None:
    kube.apply(manifest(namespace))
    spec = changed("trainer.nodes.max", 5)
    more = {"name": "more", "tokens": "1G", "learningRate": {"schedule": "Constant"}, "mixture": [{"source": "main"}]}
    spec["stages"].append(more)
    spec["checkpoints"]["keepLast"] = 7
    spec["failurePolicy"] = {"restartsWithoutProgress": 1}
    kube.apply(manifest(namespace, spec))


def test_every_default_is_filled_in_by_the_schema(kube: Kube, namespace: str) -> None:
    kube.apply(manifest(namespace))
    spec = kube.get("skyworkrun", "-n", namespace, "demo")["spec"]
    assert spec["optimizer"] == {
        "betas": ["0.9", "0.95"], "epsilon": "1e-8", "weightDecay": "0.1", "gradientClipping": "1.0",
    }  # fmt: skip
    assert spec["engine"] == {
        "zeroStage": 1, "microBatchSequences": 4, "activationCheckpointing": "None", "compile": False,
        "kernels": "Torch", "offload": "None",
    }  # fmt: skip
    assert spec["validation"] == {"everyTokens": "1G", "windows": 64, "domains": []}
    assert spec["guards"]["forgetting"] == {"domains": [], "maxRise": "0.05", "action": "Alert"}
    assert (spec["checkpoints"]["keepLast"], spec["checkpoints"]["keepBest"]) == (3, 0)
    assert spec["failurePolicy"] == {
        "restartsWithoutProgress": 5, "window": "6h", "backoff": {"first": "1s", "max": "1m"}, "nodeLostAfter": "3s",
        "avoidNodes": {"strikes": 3, "forgiveAfter": "6h", "max": 4}, "nodeCheck": "Never",
    }  # fmt: skip


def test_short_name_category_and_columns_answer_the_daily_questions(kube: Kube, namespace: str) -> None:
    kube.apply(manifest(namespace))
    head = kube.run("get", "swr", "-n", namespace).splitlines()[0].split()
    assert head == ["NAME", "STATE", "STAGE", "PROGRESS", "TOKENS", "VAL-LOSS", "NODES", "RESTARTS", "ETA", "AGE"]
    wide = kube.run("get", "swr", "-n", namespace, "-o", "wide").splitlines()[0].split()
    assert {"STEP", "LOSS", "GOODPUT", "TOKENS/S", "GENERATION"} <= set(wide)
    assert "skyworkrun.skywork.dev/demo" in kube.run("get", "skywork", "-n", namespace, "-o", "name")


def test_as_many_domains_as_a_run_may_have_can_all_be_guarded(kube: Kube, namespace: str) -> None:
    names = [f"{'d' * 37}-{index:02}" for index in range(64)]
    spec = changed("validation", {"domains": [{"name": name, "uri": f"s3://data/{name}"} for name in names]})
    kube.apply(manifest(namespace, spec | {"guards": {"forgetting": {"domains": names}}}))
    kube.apply(manifest(namespace, spec | {"guards": {"forgetting": {"domains": names[:5], "maxRise": "0.1"}}}))
    with pytest.raises(CommandError, match=r"must name entries of spec\.validation\.domains"):
        kube.apply(manifest(namespace, spec | {"guards": {"forgetting": {"domains": ["zh"]}}}))


def test_the_crd_stays_well_below_what_kubectl_apply_can_keep() -> None:
    # kubectl keeps what was applied in an annotation, and annotations take 256 KiB in all.
    assert len(json.dumps(crd(), separators=(",", ":"))) < 160 * 1024


def test_every_field_is_explained() -> None:
    def undocumented(node: dict[str, Any], path: str) -> list[str]:
        missing = [] if node.get("description") or path.endswith("[]") else [path]
        for name, child in node.get("properties", {}).items():
            missing += undocumented(child, f"{path}.{name}")
        if isinstance(node.get("items"), dict):
            missing += undocumented(node["items"], f"{path}[]")
        return missing

    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert undocumented(schema["spec"], "spec") == []
    assert undocumented(schema["status"], "status") == []


@pytest.mark.parametrize("path", ["charts/skywork-operator/crd.yaml", "manifests/crd/skyworkruns.yaml"])
def test_the_committed_crd_is_the_generated_one(path: str) -> None:
    assert (ROOT / path).read_text() == render(), "run `make generate`"
