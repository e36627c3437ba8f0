"""What a spec asks of checkpoints reaches the trainer, and what the trainer finds wrong with them reaches people."""

from typing import Any

import pytest
from pydantic import ValidationError
from skywork_operator.api.status import Condition, SkyworkRunStatus
from skywork_operator.policies.conditions import find
from skywork_operator.render import run_config
from skywork_operator.world import Plan, World
from skywork_trainer.config import Checkpoints

from tests.unit.operator.build import NOW, plan, pod, progress, run, status_after, world

URI = "s3://runs/demo"


def rendered(**given: Any) -> Checkpoints:
    return run_config(run(checkpoints={"uri": URI} | given), "general").checkpoints


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Checkpoints(uri=URI)),
        ({"every": "90s"}, Checkpoints(uri=URI, every_seconds=90)),
        ({"every": "Auto"}, Checkpoints(uri=URI, auto=True)),
        ({"everySteps": 7}, Checkpoints(uri=URI, every_steps=7)),
        ({"everyTokens": "2G"}, Checkpoints(uri=URI, every_tokens=2 * 10**9)),
        (
            {"keepLast": 2, "keepEveryTokens": "1T", "keepBest": 3},
            Checkpoints(uri=URI, keep_last=2, keep_every_tokens=10**12, keep_best=3),
        ),
        ({"localKeep": 1, "localEvery": "1m"}, Checkpoints(uri=URI, local_keep=1, local_every_seconds=60)),
    ],
)
def test_a_spec_s_checkpoints_are_rendered(given: dict[str, Any], expected: Checkpoints) -> None:
    assert rendered(**given) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"every": "Auto", "everySteps": 5}, "checkpoints.every and checkpoints.everySteps are given"),
        ({"everySteps": 5, "everyTokens": "1M"}, "checkpoints.everySteps and checkpoints.everyTokens are given"),
        ({"localEvery": "30s"}, "checkpoints.localEvery needs checkpoints.localKeep"),
    ],
)
def test_what_contradicts_itself_is_refused_by_the_names_of_its_fields(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        rendered(**given)


def seen(*corrupt: str, status: SkyworkRunStatus | None = None, section: str = "step") -> World:
    """A healthy generation whose rank 0 tells of corrupt checkpoints."""
    words = progress(7, section=section, corrupt_checkpoints=corrupt)
    started = status_after(world(pod(0), pod(1), pod(2)))
    return world(
        pod(0, generation=1, agent=words), pod(1, generation=1), pod(2, generation=1), status=status or started
    )


def condition(decided: Plan) -> Condition | None:
    return find(decided.status.conditions, "CheckpointCorrupt")


def test_a_corrupt_checkpoint_is_told_once_and_stays_a_condition() -> None:
    once = plan(seen("0001: rank-00000 differs"))
    told = condition(once)
    assert told is not None and (told.status, told.reason) == ("True", "PassedOver")
    assert "0001: rank-00000 differs" in told.message and "quarantine/" in told.message
    assert [event.reason for event in once.events if event.kind == "Warning"] == ["CheckpointCorrupt"]
    again = plan(seen("0001: rank-00000 differs", status=once.status), NOW + 60)
    assert again.events == ()
    assert condition(again) == told
    another = plan(seen("0001: rank-00000 differs", "0002: gone", status=again.status), NOW + 90)
    assert [event.reason for event in another.events] == ["CheckpointCorrupt"]


def test_the_condition_ends_when_a_generation_has_looked_and_found_nothing() -> None:
    told = plan(seen("0001: gone")).status
    looking = condition(plan(seen(status=told, section="restore")))
    assert looking is not None and looking.status == "True"
    mended = condition(plan(seen(status=told)))
    assert mended is not None and mended.status == "False"
    assert condition(plan(seen())) is None
