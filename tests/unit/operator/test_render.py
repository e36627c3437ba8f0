"""What a run becomes: the trainer's configuration, and a Job that keeps the contracts of the design."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_operator.api.quantities import parse_duration_seconds, parse_quantity
from skywork_operator.render import Defaults, merge, run_config, stage_objects
from skywork_trainer.config import Forgetting, RunConfig

from tests.unit.operator.build import DEFAULTS, run


def job(defaults: Defaults = DEFAULTS, **changes: Any) -> dict[str, Any]:
    return stage_objects(run(**changes), "general", defaults)[1]


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (found,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_the_config_map_holds_what_the_trainer_parses() -> None:
    config_map = stage_objects(run(), "stem", DEFAULTS)[0]
    assert RunConfig.model_validate_json(config_map["data"]["run.json"]) == run_config(run(), "stem")


def test_steps_are_numbered_over_the_run_and_budgets_round_up_to_whole_steps() -> None:
    config = run_config(run(), "stem")
    assert (config.stage_steps(0), config.stage_steps(1)) == (range(0, 100), range(100, 150))
    odd = run_config(run(batch={"sequenceLength": 64, "globalTokens": "1088"}), "stem")
    assert odd.stage_steps(0) == range(0, 95)


def test_a_stage_s_configuration_does_not_change_when_a_later_stage_is_appended() -> None:
    stages = run().spec.model_dump(by_alias=True, exclude_none=True)["stages"]
    assert run_config(run(stages=stages[:1]), "general") == run_config(run(stages=stages), "general")


def test_the_paper_s_preset_has_the_paper_s_geometry() -> None:
    model = run_config(run(model={"preset": "skywork-13b"}), "general").model
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.ffn) == (52, 4608, 36, 36, 12288)
    assert (model.vocab_size, model.rope_theta, model.norm_eps, model.init_std) == (65536, 10000.0, 1e-6, 0.01)


def test_a_preset_may_be_overridden_field_by_field() -> None:
    model = run_config(run(model={"preset": "tiny", "layers": 2, "kvHeads": 2}), "general").model
    assert (model.layers, model.kv_heads, model.hidden) == (2, 2, 128)


def test_an_open_model_s_geometry_and_weights_reach_the_trainer() -> None:
    llama = {"layers": 2, "hidden": 64, "heads": 4, "kvHeads": 2, "ffn": 128, "vocabSize": 512}
    spec = {
        "model": llama | {"ropeTheta": "500000.0", "normEps": "1e-05"},
        "initialWeights": {"uri": "s3://open/llama"},
    }
    config = run_config(run(**spec), "stem")
    assert (config.model.rope_theta, config.model.norm_eps) == (500_000.0, 1e-5)
    assert config.initial_weights_uri == "s3://open/llama"
    assert run_config(run(), "general").initial_weights_uri is None


def test_the_optimizer_defaults_are_the_paper_s() -> None:
    optimizer = run_config(run(), "general").optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.gradient_clipping) == (
        0.9,
        0.95,
        0.1,
        1,
    )


def test_the_job_never_gives_up_by_itself_and_never_makes_a_twin_of_a_pod_that_may_still_run() -> None:
    spec = job()["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 2**31 - 1
    assert spec["podReplacementPolicy"] == "Failed"
    actions = [(r["action"], r.get("onExitCodes", {}).get("values")) for r in spec["podFailurePolicy"]["rules"]]
    assert actions == [("FailJob", [64]), ("Ignore", [75]), ("Ignore", None)]


def test_pods_are_hardened_and_hold_no_token() -> None:
    pod = job()["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    limits = container(job())["securityContext"]
    assert limits["readOnlyRootFilesystem"] is True
    assert limits["allowPrivilegeEscalation"] is False
    assert limits["capabilities"] == {"drop": ["ALL"]}


def test_gpus_are_asked_for_and_get_one_worker_each() -> None:
    found = container(job(trainer={"nodes": {"max": 2}, "gpusPerNode": 8}))
    assert found["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert found["args"][:3] == ["agent", "--workers", "8"]
    assert "resources" not in container(job())


def test_a_run_s_template_lies_over_the_cluster_s_which_lies_over_ours() -> None:
    ours = container(job())
    cluster = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "A", "value": "cluster"}, {"name": "B"}]}]}}
    own = {
        "spec": {
            "nodeSelector": {"pool": "gpu"},
            "containers": [{"name": "trainer", "env": [{"name": "A", "value": "run"}]}],
        }
    }
    made = job(Defaults(image="x", template=cluster), trainer={"nodes": {"max": 1}, "template": own})
    environment = {entry["name"]: entry.get("value") for entry in container(made)["env"]}
    assert (environment["A"], "B" in environment, environment["HOME"]) == ("run", True, "/tmp")
    assert made["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert [m["mountPath"] for m in container(made)["volumeMounts"]] == [m["mountPath"] for m in ours["volumeMounts"]]


def test_merging_changes_neither_side() -> None:
    base, patch = {"a": {"b": [1]}}, {"a": {"c": 2}}
    assert merge(base, patch) == {"a": {"b": [1], "c": 2}}
    assert (base, patch) == ({"a": {"b": [1]}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    ("text", "value"),
    [("2T", 2 * 10**12), ("1100G", 1100 * 10**9), ("16777216", 16777216), ("1.5k", 1500), ("4Ki", 4096)],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@given(st.integers(0, 20), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    assert parse_duration_seconds(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize("text", ["", "10", "5 m", "m", "-3s"])
def test_what_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration_seconds(text)


def test_what_is_asked_of_validation_reaches_the_trainer() -> None:
    bare = run_config(run(), "stem")
    assert (bare.validation.reference_tokenizer_uri, bare.validation.time_budget_seconds) == (None, None)
    assert bare.guards.forgetting == Forgetting(domains=(), max_rise=0.05)
    config = run_config(
        run(
            validation={
                "domains": [{"name": "zh", "uri": "s3://data/zh"}],
                "referenceTokenizer": {"uri": "s3://open/llama"},
                "timeBudget": "1m30s",
            },
            guards={"forgetting": {"domains": ["zh"], "maxRise": "0.2"}},
        ),
        "stem",
    )
    assert (config.validation.reference_tokenizer_uri, config.validation.time_budget_seconds) == ("s3://open/llama", 90)
    assert config.guards.forgetting == Forgetting(domains=("zh",), max_rise=0.2)


def test_a_domain_that_must_not_be_forgotten_has_to_be_one() -> None:
    with pytest.raises(ValueError, match=r"guards\.forgetting\.domains names \['zh'\]; validation\.domains are"):
        run_config(run(guards={"forgetting": {"domains": ["zh"]}}), "stem")
