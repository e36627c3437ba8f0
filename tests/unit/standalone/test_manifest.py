import random
import re
from pathlib import Path

import pytest
import yaml
from skywork_operator.standalone import embedded
from skywork_operator.standalone.manifest import choose, environment, parse

from tests.unit.standalone.runs import manifest

BODY = manifest(Path("/runs"))
TWO = yaml.safe_dump_all([BODY, {"kind": "Secret"}, BODY | {"metadata": {"name": "other"}}])


def test_the_run_is_found_among_other_documents_and_by_name_among_runs() -> None:
    one = yaml.safe_dump_all([{"kind": "Namespace"}, BODY])
    assert choose(one)["metadata"]["name"] == "laptop"
    assert choose(TWO, "other")["metadata"]["name"] == "other"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        pytest.param("a: [", None, "no YAML", id="no YAML"),
        pytest.param("", None, "no SkyworkRun, but nothing", id="nothing"),
        pytest.param("kind: Pod", None, "no SkyworkRun, but Pod", id="something else"),
        pytest.param(TWO, None, "2 runs (laptop, other): choose one with --name", id="two runs"),
        pytest.param(TWO, "third", "no SkyworkRun is named 'third'; there are laptop, other", id="unknown name"),
        pytest.param("{kind: SkyworkRun, metadata: {name: a}, apiVersion: x/v1}", None, "'x/v1'", id="version"),
        pytest.param("{kind: SkyworkRun, apiVersion: skywork.dev/v1alpha1}", None, "metadata.name", id="no name"),
    ],
)
def test_a_file_without_the_run_is_refused_with_what_it_holds(text: str, name: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        choose(text, name)


def test_a_wrong_field_is_named_with_what_is_allowed() -> None:
    wrong = manifest(Path("/runs"), batch={"sequenceLength": 4, "globalTokens": "8"})
    with pytest.raises(ValueError, match=r"spec: batch\.sequenceLength: .*greater than or equal to 8"):
        parse(wrong, nodes=1, gpus_per_node=0, now=0.0)


def test_the_nodes_there_are_replace_those_of_the_manifest() -> None:
    run = parse(BODY, nodes=3, gpus_per_node=2, now=10.2)
    assert (run.spec.trainer.nodes.min, run.spec.trainer.nodes.max, run.spec.trainer.gpus_per_node) == (1, 3, 2)
    many = manifest(Path("/runs"), trainer={"nodes": {"min": 8, "max": 64}})
    assert parse(many, nodes=2, gpus_per_node=0, now=0.0).spec.trainer.nodes.min == 2


def test_checkpoints_of_a_later_start_order_after_those_of_an_earlier_one() -> None:
    # A run of the cluster has its creation time in whole seconds; this one began within the same second.
    assert parse(BODY, nodes=1, gpus_per_node=0, now=1000.4).created_seconds > 1000


def test_environment_of_the_pod_template_is_taken_where_it_is_literal_and_named_where_it_is_not() -> None:
    container = {
        "name": "trainer",
        "env": [
            {"name": "AWS_ENDPOINT_URL", "value": "http://s3:9000"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "envFrom": [{"secretRef": {"name": "object-storage"}}],
    }
    others = [{"name": "sidecar", "env": [{"name": "X", "value": "1"}]}, container]
    trainer = {"nodes": {"max": 1}, "template": {"spec": {"containers": others}}}
    run = parse(manifest(Path("/runs"), trainer=trainer), nodes=1, gpus_per_node=0, now=0.0)
    found, elsewhere = environment(run.spec.trainer)
    assert found == {"AWS_ENDPOINT_URL": "http://s3:9000"}
    assert elsewhere == ["TOKEN", "all of secret object-storage"]


def test_a_manifest_survives_the_environment_whatever_it_holds() -> None:
    text = 'a: "${replica_id} $$ \\n 天工"\n' * 50
    value = embedded.encode(text)
    assert "$" not in value and embedded.decode({embedded.VARIABLE: value}) == text


@pytest.mark.parametrize(
    ("held", "said"),
    [({}, "--run FILE"), ({embedded.VARIABLE: "kind: SkyworkRun"}, "holds no manifest")],
    ids=["none", "text"],
)
def test_a_node_without_a_manifest_says_how_to_give_one(held: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        embedded.decode(held)


def test_a_manifest_too_long_for_the_environment_is_refused_before_it_is_submitted() -> None:
    chance = random.Random(0)
    with pytest.raises(ValueError, match="an environment variable takes"):
        embedded.encode("".join(chance.choices("0123456789abcdef", k=400_000)))
