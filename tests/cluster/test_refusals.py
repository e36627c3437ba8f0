"""What only the world can tell becomes a condition that says what to do, and nothing is overwritten."""

from typing import Any

import pytest

from dev.demo import install
from dev.demo.environment import Environment
from tests.cluster import runs


def _failed(environment: Environment, name: str) -> dict[str, Any]:
    status = runs.finished(environment, name, "Failed")
    (condition,) = [c for c in status["conditions"] if c["type"] == "Failed"]
    found: dict[str, Any] = condition
    return found


@pytest.mark.parametrize(
    ("name", "changes", "reason", "named"),
    [
        pytest.param(
            "no-bucket",
            {"sources": [{"name": "main", "uri": "s3://no-such-bucket/main"}]},
            "BucketMissing",
            "no-such-bucket",
            id="a bucket that does not exist",
        ),
        pytest.param(
            "small-vocabulary",
            {"model": {"preset": "tiny", "vocabSize": 1024}},
            "VocabularyTooLarge",
            "1024",
            id="a tokenizer with more tokens than the model has rows",
        ),
    ],
)
def test_a_wrong_world_fails_the_run_with_a_reason(
    environment: Environment, name: str, changes: dict[str, Any], reason: str, named: str
) -> None:
    runs.start(environment, runs.manifest(name, nodes=1, **changes))
    condition = _failed(environment, name)
    assert condition["reason"] == reason
    assert named in condition["message"].replace(",", "")
    runs.remove(environment, name)


def test_a_checkpoint_of_another_model_is_refused_and_stays_as_it_is(environment: Environment) -> None:
    runs.start(environment, runs.manifest("other-model", steps=5, nodes=1))
    runs.finished(environment, "other-model")
    before = _objects(environment, "runs/other-model/")
    assert any(key.endswith("manifest.json") for key in before)
    runs.start(
        environment, runs.manifest("other-model", steps=9, nodes=1, model={"preset": "tiny", "layers": 2}), fresh=False
    )
    condition = _failed(environment, "other-model")
    assert condition["reason"] == "CheckpointMismatch"
    assert "model" in condition["message"]
    assert _objects(environment, "runs/other-model/") == before
    runs.remove(environment, "other-model")


def _objects(environment: Environment, prefix: str) -> dict[str, str]:
    listed = install.s3_client(environment.storage).list_objects_v2(Bucket=install.BUCKET, Prefix=prefix)
    return {entry["Key"]: entry["ETag"] for entry in listed.get("Contents", [])}
