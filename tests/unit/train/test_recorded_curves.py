"""What real worlds write down is the run as it counts, read back from beside its checkpoints."""

import math
import signal
from pathlib import Path

import pytest
from skywork_trainer.checkpoint.history import audit
from skywork_trainer.config import Checkpoints, Progress, RunConfig, Source, SpikeAction, StartFrom, Validation
from skywork_trainer.curves.accounting import account, worked
from skywork_trainer.curves.reading import read_curve
from skywork_trainer.curves.run import Curve
from skywork_trainer.storage import open_store

from tests.unit.train.test_spikes import SPIKE, config_of, world
from tests.unit.train.world import BATCH, TOKENS_PER_STEP, Fault, done, run_config, train

HELD_OUT = Validation(every_tokens=3 * TOKENS_PER_STEP, windows=3, domains=(Source(name="web", uri="file:///x"),))


def curve(config: RunConfig) -> Curve:
    return read_curve(open_store(config.checkpoints.uri))


def losses(config: RunConfig) -> list[float]:
    return audit(open_store(config.checkpoints.uri)).losses


def saving(folder: Path, every: int, **more: object) -> Checkpoints:
    values = {"uri": (folder / "store").as_uri(), "every_steps": every, "keep_last": 1, "background": False}
    return Checkpoints(**(values | more))


def test_steps_that_a_crash_took_back_are_there_once_as_they_were_trained_again(tmp_path: Path) -> None:
    config = run_config(tmp_path, validation=HELD_OUT, checkpoints=saving(tmp_path, 2))
    train(config, tmp_path, size=2, fault=Fault(rank=1, step=5, signal=signal.SIGKILL))
    assert train(config, tmp_path, size=3, generation=2) == done(3)
    found = curve(config)
    assert found.steps.step.tolist() == list(range(1, 9))
    assert found.steps.loss.tolist() == losses(config)
    assert [(v.step, v.stage_start) for v in found.validations] == [(0, True), (3, False), (6, False), (8, False)]
    assert [(g.generation, g.step, g.world) for g in found.generations] == [(1, 0, 2), (2, 4, 3)]
    assert found.mixtures[-1].sequences == {"main": 8 * BATCH}
    assert not found.notes


def test_a_world_of_one_node_kept_checkpoints_leaves_no_hole(tmp_path: Path) -> None:
    local = saving(tmp_path, 100, local_keep=2, local_every_seconds=1e-6, background=True)
    config = run_config(tmp_path, steps=(60,), checkpoints=local)
    train(config, tmp_path, size=1, fault=Fault(rank=0, step=40, signal=signal.SIGKILL))
    assert train(config, tmp_path, size=1, generation=2) == done(1)
    found = curve(config)
    assert found.steps.step.tolist() == list(range(1, 61))
    assert found.generations[-1].step > 0, "it went on from what its node had kept"
    assert found.steps.loss.tolist() == losses(config)


def test_a_rollback_leaves_out_what_it_took_back_and_the_steps_around_the_spike(tmp_path: Path) -> None:
    config = config_of(tmp_path, SpikeAction.ROLLBACK)
    assert world(config, tmp_path, 2, 1, SPIKE) == [1, 1]
    assert world(config, tmp_path, 3, 2, SPIKE) == done(3)
    found, whole = curve(config), losses(config)
    trained = [step for step, loss in enumerate(whole, start=1) if not math.isnan(loss)]
    assert found.steps.step.tolist() == trained == [*range(1, 26), *range(36, 41)]
    assert found.steps.loss.tolist() == [whole[step - 1] for step in trained]
    assert [(event.step, event.reason) for event in found.events] == [(25, "StepsLeftOut")]
    (rollback,) = found.rollbacks
    assert rollback.to_step == 20


def test_a_fork_s_curve_begins_with_its_parent_s(tmp_path: Path) -> None:
    parent = run_config(
        tmp_path / "parent", validation=HELD_OUT, checkpoints=saving(tmp_path / "parent", 2, keep_last=9)
    )
    assert train(parent, tmp_path / "parent", size=1) == done(1)
    start = StartFrom(uri=parent.checkpoints.uri, step=4)
    fork = run_config(tmp_path / "fork", validation=HELD_OUT, start_from=start)
    assert train(fork, tmp_path / "fork", size=1) == done(1)
    found = curve(fork)
    assert found.steps.step.tolist() == list(range(1, 9))
    assert found.steps.loss.tolist() == losses(parent)[:4] + losses(fork)
    assert [f.step for f in found.forks] == [4]
    assert [v.step for v in found.validations] == [0, 3, 6, 8]
    progress = Progress.model_validate_json((tmp_path / "fork/state-1/progress.json").read_bytes())
    assert [point.step for point in progress.validation_curve] == [0, 3, 6, 8]


def test_the_recorded_time_of_a_generation_is_its_wall_time_within_a_percent(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(400,), validation=HELD_OUT, checkpoints=saving(tmp_path, 100))
    assert train(config, tmp_path, size=2) == done(2)
    found = curve(config)
    last = found.told[-1].record
    first = min(one.record.time for one in found.told)
    accounts = account(worked(found))
    # From the generation's own record, made once it had restored, to the last one of its time.
    trained = accounts.wall_seconds - accounts.seconds["initialize"] - accounts.seconds["restore"]
    assert trained == pytest.approx(last.time - first, rel=0.01)
    assert accounts.seconds["train"] > 0 and accounts.seconds["idle"] == pytest.approx(0, abs=0.01)
