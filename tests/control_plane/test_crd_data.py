"""Sources, preparations and stages as the real API server sees them: what may be said, and what may be edited when."""

import copy
import json
from typing import Any

import pytest

from dev.demo.kube import CommandError, Kube
from tests.control_plane.test_crd import changed, manifest
from tests.unit.operator.build import SPEC

INPUTS = {"inputs": ["s3://text/*.jsonl"]}
RATE = SPEC["stages"][0]["learningRate"]
MORE = {"name": "more", "tokens": "1G", "learningRate": {"schedule": "Constant"}, "mixture": [{"source": "main"}]}


def prepared(**prepare: Any) -> dict[str, Any]:
    return {"name": "main", "uri": "s3://data/main", "prepare": INPUTS | prepare}


def domain(**fields: Any) -> dict[str, Any]:
    return {"domains": [{"name": "zh", "uri": "s3://data/zh", **fields}]}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        pytest.param("batch.attention", "Causal", "spec.batch.attention", id="an unknown attention"),
        pytest.param("sources.0.epochs", {"max": 0}, "spec.sources[0].epochs.max", id="no epochs"),
        pytest.param("sources.0.epochs", {"max": 1, "beyond": "Stop"}, "sources[0].epochs.beyond", id="beyond"),
        pytest.param("sources.0.onCorruptShard", "Skip", "spec.sources[0].onCorruptShard", id="skipped shards"),
        pytest.param("sources.0", prepared(inputs=[]), "spec.sources[0].prepare.inputs", id="no inputs"),
        pytest.param("sources.0", prepared(inputs=["text"]), "spec.sources[0].prepare.inputs[0]", id="a bare path"),
        pytest.param("sources.0", prepared(pods=0), "spec.sources[0].prepare.pods", id="no pods"),
        pytest.param("sources.0", prepared(workersPerPod=0), "prepare.workersPerPod", id="no workers"),
        pytest.param("sources.0", prepared(shardTokens="many"), "prepare.shardTokens", id="tokens in words"),
        pytest.param("sources.0", prepared(maxBadShare="2"), "prepare.maxBadShare must lie in 0..1", id="all bad"),
        pytest.param(
            "sources.0", prepared(filters={"maxSymbolShare": "1.1"}), "maxSymbolShare must lie in 0..1", id="symbols"
        ),
        pytest.param(
            "sources.0",
            prepared(filters={"maxRepeatedShare": "1.1"}),
            "maxRepeatedShare must lie in 0..1",
            id="repeats",
        ),
        pytest.param(
            "sources.0",
            prepared(filters={"minCharacters": 9, "maxCharacters": 8}),
            "filters.minCharacters must not be greater than filters.maxCharacters",
            id="nothing is long enough",
        ),
        pytest.param(
            "sources.0",
            prepared(filters={"minScriptShare": [{"script": "Runic", "share": "0.1"}]}),
            "minScriptShare[0].script",
            id="an unknown script",
        ),
        pytest.param(
            "sources.0",
            prepared(filters={"minScriptShare": [{"script": "Han", "share": "3"}]}),
            "minScriptShare[].share must lie in 0..1",
            id="more than every letter",
        ),
        pytest.param(
            "sources.0",
            prepared(duplicates={"near": {"threshold": "0.2"}}),
            "duplicates.near.threshold must be at least 0.3",
            id="everything alike",
        ),
        pytest.param(
            "sources.0", prepared(duplicates={"exact": False}), "duplicates.near is missing", id="no duplicates at all"
        ),
        pytest.param(
            "sources.0",
            prepared(duplicates={"known": ["books"]}),
            "spec.sources[].prepare.duplicates.known must name other entries of spec.sources",
            id="an unknown known source",
        ),
        pytest.param(
            "sources.0",
            prepared(duplicates={"known": ["main"]}),
            "spec.sources[].prepare.duplicates.known must name other entries of spec.sources",
            id="a source that knows itself",
        ),
        pytest.param("sources.0", prepared(decontaminate={"uris": []}), "decontaminate.uris", id="no evaluation sets"),
        pytest.param("validation", domain(epochs={"max": 1}), 'unknown field "epochs" in', id="domain epochs"),
        pytest.param(
            "validation",
            domain(prepare=INPUTS | {"duplicates": {"known": ["zh"]}}),
            "spec.validation.domains[].prepare.duplicates.known must name entries of spec.sources",
            id="a domain that knows no source",
        ),
        pytest.param(
            "validation",
            {"domains": [prepared()]},
            "spec.validation.domains[].name of a domain with prepare must not",
            id="a prepared domain with a source's name",
        ),
        pytest.param("stages.1.name", "prepare-x", "must not begin with prepare-", id="a reserved stage name"),
        pytest.param("stages.1.mixture.0.share", {}, "share.from and share.points: give exactly one", id="no share"),
        pytest.param(
            "stages.1.mixture.0.share",
            {"from": "0.1", "points": [{"at": "0", "share": "0.1"}]},
            "share.from and share.points: give exactly one",
            id="both kinds of share",
        ),
        pytest.param(
            "stages.1.mixture.0.share",
            {"points": [{"at": "0", "share": "0.1"}], "to": "0.4"},
            "share.to and share.shape go with share.from",
            id="points and an end",
        ),
        pytest.param(
            "stages.1.mixture.0.share",
            {"points": [{"at": "1.5", "share": "0.1"}]},
            "share.points[].at and share.points[].share must lie in 0..1",
            id="a point past the end",
        ),
        pytest.param("stages.1.mixture.0.share", {"points": []}, "share.points", id="no points"),
    ],
)
def test_bad_data_is_refused_with_the_field_s_name(
    kube: Kube, namespace: str, path: str, value: Any, named: str
) -> None:
    with pytest.raises(CommandError) as refused:
        kube.apply(manifest(namespace, changed(path, value)))
    assert named in str(refused.value)


def test_a_whole_preparation_is_accepted_and_its_defaults_are_filled_in(kube: Kube, namespace: str) -> None:
    spec = changed("sources.1.prepare", INPUTS | {"duplicates": {"known": ["main"], "near": {}}})
    spec["validation"] = domain(prepare=INPUTS)
    spec["stages"][1]["mixture"][0]["share"] = {"points": [{"at": "0.25", "share": "0.3"}, {"at": "1", "share": "0"}]}
    kube.apply(manifest(namespace, spec))
    source = kube.get("skyworkrun", "-n", namespace, "demo")["spec"]["sources"][1]
    assert source["onCorruptShard"] == "Fail"
    assert source["prepare"] == INPUTS | {
        "pods": 1, "workersPerPod": 1, "textField": "text", "shardTokens": "16777216", "chunkBytes": "256Mi",
        "maxBadShare": "0.01", "filters": {"normalise": True, "removeRepeatedBlocks": False, "minScriptShare": []},
        "duplicates": {
            "exact": True, "known": ["main"], "near": {"threshold": "0.8", "words": 5, "permutations": 128}
        },
    }  # fmt: skip


def test_the_largest_spec_the_schema_allows_stays_within_the_cost_of_its_rules(kube: Kube, namespace: str) -> None:
    spec = copy.deepcopy(SPEC)
    known = [f"s{n}" for n in range(16)]
    prepare = INPUTS | {"inputs": [f"s3://text/{n}" for n in range(40)]}
    spec["sources"] += [
        {
            "name": f"s{n}",
            "uri": f"s3://d/{n}",
            "prepare": prepare if n < 16 else prepare | {"duplicates": {"known": known}},
        }
        for n in range(62)
    ]
    points = [{"at": f"{n / 32}", "share": "0.01"} for n in range(32)]
    mixture = [{"source": f"s{n}", "share": {"points": points}} for n in range(31)] + [{"source": "main"}]
    spec["stages"] += [{**MORE, "name": f"x{n}", "mixture": mixture} for n in range(30)]
    apply_large(kube, manifest(namespace, spec))
    started = [{"name": s["name"]} for s in spec["stages"]]
    phases = [{"name": s["name"], "phase": "Writing"} for s in spec["sources"]]
    write_status(kube, namespace, {"stages": started, "sources": phases})
    spec["sources"][0]["onCorruptShard"] = "Substitute"
    apply_large(kube, manifest(namespace, spec))
    kube.run("delete", "skyworkrun", "-n", namespace, "demo")


def apply_large(kube: Kube, body: dict[str, Any]) -> None:
    """Apply on the server: a client-side apply keeps the whole object in an annotation, which has its own limit."""
    kube.run("apply", "--server-side", "-f", "-", stdin=json.dumps(body))


def write_status(kube: Kube, namespace: str, status: dict[str, Any]) -> None:
    patch = json.dumps({"status": status})
    kube.run("patch", "skyworkrun", "demo", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def stages(*order: int, **changes: Any) -> list[dict[str, Any]]:
    """The example's stages and one more, by number, with stages' fields changed by name."""
    known = [*copy.deepcopy(SPEC["stages"]), MORE]
    return [known[n] | changes.get(known[n]["name"], {}) for n in order]


EDITS = [
    pytest.param(0, stages(0, 1, 2), True, id="nothing has started, one is appended"),
    pytest.param(0, stages(0, 1, general={"tokens": "204800"}), True, id="nothing has started, the first is edited"),
    pytest.param(0, stages(0), True, id="nothing has started, one is removed"),
    pytest.param(1, stages(0, 1, 2), True, id="one has started, one is appended"),
    pytest.param(1, stages(0, 1, stem={"tokens": "204800"}), True, id="one has started, the next is edited"),
    pytest.param(1, stages(0), True, id="one has started, the next is removed"),
    pytest.param(1, stages(0, 2, 1), True, id="one has started, another comes between"),
    pytest.param(1, stages(0, 1, general={"tokens": "204800"}), False, id="one has started and is edited"),
    pytest.param(
        1, stages(0, 1, general={"mixture": [{"source": "stem"}]}), False, id="one has started, its mixture is edited"
    ),
    pytest.param(
        1, [dict(MORE, learningRate=SPEC["stages"][0]["learningRate"]), *stages(0, 1)], False, id="put before"
    ),
    pytest.param(2, stages(0, 1, 2), True, id="both have started, one is appended"),
    pytest.param(2, stages(0), False, id="both have started, the last is removed"),
    pytest.param(2, stages(0, 1, stem={"tokens": "204800"}), False, id="both have started, the last is edited"),
]


@pytest.mark.parametrize(("started", "edited", "allowed"), EDITS)
def test_stages_may_be_edited_until_they_start(
    kube: Kube, namespace: str, started: int, edited: list[dict[str, Any]], allowed: bool
) -> None:
    kube.apply(manifest(namespace))
    write_status(kube, namespace, {"stages": [{"name": s["name"]} for s in SPEC["stages"][:started]]})
    if allowed:
        kube.apply(manifest(namespace, SPEC | {"stages": edited}))
        found = kube.get("skyworkrun", "-n", namespace, "demo")
        assert [s["name"] for s in found["spec"]["stages"]] == [s["name"] for s in edited]
        assert len(found["status"]["stages"]) == started
        return
    with pytest.raises(CommandError, match=r"stages that have started .* cannot be changed, removed or reordered"):
        kube.apply(manifest(namespace, SPEC | {"stages": edited}))


def test_started_stages_that_are_only_swapped_are_refused(kube: Kube, namespace: str) -> None:
    both = stages(0, 1, stem={"learningRate": RATE})
    kube.apply(manifest(namespace, SPEC | {"stages": both}))
    write_status(kube, namespace, {"stages": [{"name": s["name"]} for s in both]})
    with pytest.raises(CommandError, match="cannot be changed, removed or reordered"):
        kube.apply(manifest(namespace, SPEC | {"stages": both[::-1]}))


def test_the_status_of_a_run_can_be_written_whatever_its_stages(kube: Kube, namespace: str) -> None:
    kube.apply(manifest(namespace))
    write_status(kube, namespace, {"stages": [{"name": "general"}]})
    write_status(kube, namespace, {"stages": [{"name": "general"}, {"name": "stem"}], "state": "Training"})
    assert kube.get("skyworkrun", "-n", namespace, "demo")["status"]["state"] == "Training"


def test_sources_may_be_appended_but_not_removed_or_renamed(kube: Kube, namespace: str) -> None:
    kube.apply(manifest(namespace))
    more = {"name": "more", "uri": "s3://data/more", "epochs": {"max": 2}, "prepare": INPUTS}
    spec = changed("sources", [*SPEC["sources"], more])
    kube.apply(manifest(namespace, spec))
    for left in ([*SPEC["sources"]], [*SPEC["sources"], more | {"name": "other"}]):
        with pytest.raises(CommandError, match="sources may be appended, not removed or renamed"):
            kube.apply(manifest(namespace, spec | {"sources": left}))


@pytest.mark.parametrize("edited", [{"epochs": None}, {"epochs": {"max": 3}}, {"epochs": {"max": 2, "beyond": "Fail"}}])
def test_the_epochs_of_a_source_never_change(kube: Kube, namespace: str, edited: dict[str, Any]) -> None:
    kube.apply(manifest(namespace, changed("sources.1.epochs", {"max": 2})))
    with pytest.raises(CommandError, match="epochs is immutable"):
        kube.apply(manifest(namespace, changed("sources.1", {**SPEC["sources"][1], **edited})))


@pytest.mark.parametrize(
    ("phase", "allowed"), [(None, True), ("Pending", True), ("Scanning", False), ("Writing", False), ("Prepared", True)]
)
@pytest.mark.parametrize("edited", [INPUTS | {"pods": 2}, None], ids=["edited", "removed"])
def test_how_a_source_is_prepared_may_change_unless_it_is_being_prepared(
    kube: Kube, namespace: str, phase: str | None, allowed: bool, edited: dict[str, Any] | None
) -> None:
    kube.apply(manifest(namespace, changed("sources.0.prepare", INPUTS)))
    if phase:
        write_status(kube, namespace, {"sources": [{"name": "main", "phase": phase}]})
    spec = changed("sources.0.prepare", edited) if edited else copy.deepcopy(SPEC)
    spec["sources"][0]["onCorruptShard"] = "Substitute"
    if allowed:
        kube.apply(manifest(namespace, spec))
        return
    with pytest.raises(CommandError, match="prepare cannot be changed while the source is being prepared"):
        kube.apply(manifest(namespace, spec))
    spec = changed("sources.0.prepare", INPUTS)
    spec["sources"][1]["prepare"] = INPUTS
    kube.apply(manifest(namespace, spec))
