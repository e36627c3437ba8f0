"""Data as it is rendered: sources, shares and attention for the trainer, and the manifests of a preparation."""

import re
from typing import Any

import pytest
from skywork_operator.render import (
    config_name,
    job_name,
    preparation,
    prepare_config_map,
    prepare_job,
    run_config,
    stage_objects,
)
from skywork_trainer.config import (
    Attention,
    BeyondLimit,
    Decontamination,
    Filters,
    NearDuplicates,
    OnCorrupt,
    Point,
    Preparation,
    Share,
)

from tests.unit.operator.build import DEFAULTS, SPEC, run

PREPARE: dict[str, Any] = {
    "inputs": ["s3://text/a/*.jsonl.zst", "s3://text/b"],
    "pods": 4,
    "workersPerPod": 8,
    "textField": "body",
    "shardTokens": "1M",
    "chunkBytes": "1Mi",
    "maxBadShare": "0.05",
    "filters": {
        "minCharacters": 10,
        "maxSymbolShare": "0.3",
        "removeRepeatedBlocks": True,
        "minScriptShare": [{"script": "Han", "share": "0.3"}],
    },
    "duplicates": {"known": ["main"], "near": {"threshold": "0.7"}},
    "decontaminate": {"uris": ["s3://eval/gsm8k"]},
}


def sources(**fields: Any) -> list[dict[str, Any]]:
    main, stem = SPEC["sources"]
    return [main, {**stem, **fields}]


def job(reading: Any = "scan", prepare: dict[str, Any] = PREPARE, **changes: Any) -> dict[str, Any]:
    return prepare_job(run(sources=sources(prepare=prepare), **changes), "stem", reading, DEFAULTS)


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (found,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_a_preparation_maps_field_by_field() -> None:
    assert preparation(run(sources=sources(prepare=PREPARE)), "stem") == Preparation(
        inputs=("s3://text/a/*.jsonl.zst", "s3://text/b"),
        output="s3://data/stem",
        tokenizer_uri="s3://data/tokenizer",
        text_field="body",
        filters=Filters(
            min_characters=10, max_symbol_share=0.3, remove_repeated_blocks=True, min_script_share={"Han": 0.3}
        ),
        exact_duplicates=True,
        known=("s3://data/main",),
        near_duplicates=NearDuplicates(threshold=0.7),
        decontamination=Decontamination(uris=("s3://eval/gsm8k",)),
        max_bad_share=0.05,
        shard_tokens=1_000_000,
        chunk_bytes=1 << 20,
    )


def test_a_preparation_that_asks_for_nothing_has_the_trainer_s_own_defaults() -> None:
    bare = preparation(run(sources=sources(prepare={"inputs": ["s3://text"]})), "stem")
    assert bare == Preparation(inputs=("s3://text",), output="s3://data/stem", tokenizer_uri="s3://data/tokenizer")


def test_a_held_out_domain_is_prepared_like_a_source() -> None:
    domain = {"name": "zh", "uri": "s3://data/zh", "prepare": {"inputs": ["s3://text/zh"]}}
    assert preparation(run(validation={"domains": [domain]}), "zh").output == "s3://data/zh"


def test_the_prepare_config_map_holds_what_the_trainer_parses_and_never_changes() -> None:
    with_prepare = run(sources=sources(prepare=PREPARE))
    made = prepare_config_map(with_prepare, "stem")
    assert Preparation.model_validate_json(made["data"]["prepare.json"]) == preparation(with_prepare, "stem")
    assert (made["metadata"]["name"], made["immutable"]) == ("demo-prepare-stem", True)


def test_a_prepare_job_has_a_pod_for_every_part_that_knows_its_number() -> None:
    spec = job("write")["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert container(job("write"))["command"] == ["skywork"]
    assert container(job("write"))["args"] == [
        "data", "prepare", "--config", "/etc/skywork/prepare/prepare.json", "--phase", "write",
        "--part", "$(JOB_COMPLETION_INDEX)/4", "--workers", "8",
    ]  # fmt: skip


def test_a_template_that_replaces_the_command_serves_training_and_preparing_alike() -> None:
    template = {"spec": {"containers": [{"name": "trainer", "command": ["/my/wrap"]}]}}
    made = container(job("write", trainer={"nodes": {"max": 2}, "template": template}))
    assert (made["command"], made["args"][:2]) == (["/my/wrap"], ["data", "prepare"])


def test_a_prepare_job_tries_every_part_again_but_not_what_cannot_succeed() -> None:
    spec = job()["spec"]
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (5, 0)
    actions = [(r["action"], r.get("onExitCodes", {}).get("values")) for r in spec["podFailurePolicy"]["rules"]]
    assert actions == [("FailJob", [64]), ("Ignore", [75]), ("Ignore", None)]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_a_prepare_job_is_no_stage_s_job() -> None:
    labels = job()["metadata"]["labels"]
    assert labels["skywork.dev/run"] == "demo" and "skywork.dev/stage" not in labels
    assert (labels["skywork.dev/prepare"], labels["skywork.dev/phase"]) == ("stem", "scan")
    assert job()["spec"]["template"]["metadata"]["labels"] == labels


def test_prepare_pods_are_hardened_exactly_like_training_pods() -> None:
    stage = stage_objects(run(), "general", DEFAULTS)[1]
    ours, theirs = job()["spec"]["template"]["spec"], stage["spec"]["template"]["spec"]
    for field in ("securityContext", "automountServiceAccountToken", "enableServiceLinks", "restartPolicy"):
        assert ours[field] == theirs[field]
    assert container(job())["securityContext"] == container(stage)["securityContext"]


def test_prepare_pods_get_the_run_s_credentials_and_memory_but_no_gpu() -> None:
    amounts = {"nvidia.com/gpu": 8, "memory": "64Gi"}
    patch = {"name": "trainer", "envFrom": [{"secretRef": {"name": "s3"}}], "resources": {"limits": amounts}}
    trainer = {"nodes": {"max": 2}, "gpusPerNode": 8, "template": {"spec": {"containers": [patch]}}}
    found = container(job(trainer=trainer))
    assert found["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert found["resources"]["limits"] == {"memory": "64Gi"}
    assert amounts["nvidia.com/gpu"] == 8, "the run's own template is left as it is"


@pytest.mark.parametrize("source", ["x", "y" * 40, "a" * 33 + "-bcdefg"])
@pytest.mark.parametrize("name", ["demo", "r" * 40])
def test_every_name_is_a_valid_host_name_with_the_index_of_its_pod(name: str, source: str) -> None:
    for made in (config_name(name, source), job_name(name, source, "scan"), job_name(name, source, "write")):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)
        assert len(f"{made}-1023-abcde") <= 63


def test_long_names_that_begin_alike_stay_apart() -> None:
    assert config_name("demo", "s" * 39 + "a") != config_name("demo", "s" * 39 + "b")
    assert config_name("demo", "s" * 39 + "a") == config_name("demo", "s" * 39 + "a")


def test_a_source_s_limits_reach_the_trainer() -> None:
    made = run(sources=sources(epochs={"max": 2, "beyond": "Renormalize"}, onCorruptShard="Substitute"))
    plain, limited = run_config(made, "stem").sources
    assert (plain.max_epochs, plain.beyond_limit, plain.on_corrupt) == (None, BeyondLimit.REPEAT, OnCorrupt.FAIL)
    assert (limited.max_epochs, limited.beyond_limit) == (2, BeyondLimit.RENORMALIZE)
    assert limited.on_corrupt is OnCorrupt.SUBSTITUTE


def test_breakpoints_reach_the_trainer() -> None:
    points = [{"at": "0.25", "share": "0.3"}, {"at": "1", "share": "0"}]
    mixture = [{"source": "stem", "share": {"points": points}}, {"source": "main"}]
    stages = [SPEC["stages"][0], {**SPEC["stages"][1], "mixture": mixture}]
    share = run_config(run(stages=stages), "stem").stages[1].mixture[0].share
    assert share == Share(points=(Point(at=0.25, share=0.3), Point(at=1, share=0)))


def test_attention_reaches_the_trainer() -> None:
    assert run_config(run(), "general").attention is Attention.ACROSS_DOCUMENTS
    within = run(batch={**SPEC["batch"], "attention": "WithinDocument"})
    assert run_config(within, "general").attention is Attention.WITHIN_DOCUMENT


def test_a_stage_s_configuration_does_not_change_when_a_source_is_appended() -> None:
    more = [*SPEC["sources"], {"name": "more", "uri": "s3://data/more"}]
    assert run_config(run(sources=more), "stem") == run_config(run(), "stem")
    assert [s.name for s in run_config(run(), "general").sources] == ["main"]
