"""Spikes of the loss in real worlds: told, skipped, or rolled back across a resize."""

import math
from pathlib import Path

import pytest
from skywork_trainer.checkpoint.history import Audit, audit
from skywork_trainer.checkpoint.manifest import committed, parse_id
from skywork_trainer.config import EXIT_CONFIG, Checkpoints, Failure, Guards, RunConfig, SpikeAction
from skywork_trainer.storage import open_store

from tests.unit.train.world import BATCH, done, run_config, start, train_rank

SPIKE = 30
GUARDS = Guards(window_steps=8, grace_steps=0, rollback_steps=5, skip_steps=10, most_rollbacks=1)


def _with_spikes(
    rank: int, size: int, port: int, config: RunConfig, folder: Path, generation: int, steps: tuple[int, ...]
) -> int:
    """Run a rank on data whose loss is three times as high in some steps."""
    import torch
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
    from skywork_trainer.warmup import SyntheticStream

    read, forward_backward = SyntheticStream.read, DeepSpeedEngine.forward_backward
    now = [0]

    def reading(stream: SyntheticStream, sequence: int) -> object:
        now[0] = sequence // BATCH
        return read(stream, sequence)

    def spiking(engine: DeepSpeedEngine, *others: object, **named: object) -> torch.Tensor:
        nll = forward_backward(engine, *others, **named)  # type: ignore[arg-type]
        return nll * 3 if now[0] in steps else nll

    SyntheticStream.read = reading  # type: ignore[method-assign,assignment]
    DeepSpeedEngine.forward_backward = spiking  # type: ignore[method-assign,assignment]
    return train_rank(rank, size, port, config, folder, generation, None)


def config_of(folder: Path, action: SpikeAction) -> RunConfig:
    checkpoints = Checkpoints(uri=(folder / "store").as_uri(), every_steps=10, background=False, keep_last=100)
    guards = GUARDS.model_copy(update={"spike_action": action})
    return run_config(folder, steps=(40,), checkpoints=checkpoints, guards=guards)


def world(config: RunConfig, folder: Path, size: int, generation: int, *steps: int) -> list[int]:
    return start(_with_spikes, size, config, folder, generation, steps).codes()


def counted(config: RunConfig) -> Audit:
    found = audit(open_store(config.checkpoints.uri))
    assert (found.samples_lost, found.samples_repeated) == (0, 0)
    return found


def failure(folder: Path, generation: int) -> Failure:
    return Failure.model_validate_json((folder / f"state-{generation}/failure-0.json").read_bytes())


def test_a_rollback_returns_leaves_out_the_steps_around_the_spike_and_goes_on_in_another_world(tmp_path: Path) -> None:
    config = config_of(tmp_path, SpikeAction.ROLLBACK)
    assert world(config, tmp_path, 2, 1, SPIKE) == [1, 1]
    told = failure(tmp_path, 1)
    assert (told.reason, told.retryable) == ("LossSpike", True)
    assert "training returns to step 20 and leaves out steps 25 to 34 (rollback 1 of at most 1)" in told.message
    assert world(config, tmp_path, 3, 2, SPIKE) == done(3)
    found = counted(config)
    assert (found.steps, found.samples_skipped, found.samples_consumed) == (40, 10 * BATCH, 30 * BATCH)
    assert [step for step, loss in enumerate(found.losses) if math.isnan(loss)] == list(range(25, 35))
    saved = [parse_id(identity) for identity in committed(open_store(config.checkpoints.uri))]
    assert ((1, 1), 30) in saved, "what is abandoned is left where it is"
    assert saved[-1] == ((1, 2), 40)


def test_after_too_many_rollbacks_a_spike_fails_the_run_for_good(tmp_path: Path) -> None:
    config = config_of(tmp_path, SpikeAction.ROLLBACK)
    assert world(config, tmp_path, 1, 1, SPIKE, 38) == [1]
    assert world(config, tmp_path, 1, 2, SPIKE, 38) == [EXIT_CONFIG]
    assert "was rolled back 1 times before (guards.rollback.max)" in failure(tmp_path, 2).message


def test_a_spike_right_behind_a_restart_is_seen_for_the_losses_before_it_are_remembered(tmp_path: Path) -> None:
    config = config_of(tmp_path, SpikeAction.ROLLBACK)
    assert world(config, tmp_path, 1, 1, SPIKE) == [1]
    # It goes on at step 20 and leaves out 25 to 34: a window of 8 steps is not full by then.
    assert world(config, tmp_path, 2, 2, 35) == [EXIT_CONFIG, EXIT_CONFIG]
    assert "the loss of step 35" in failure(tmp_path, 2).message


@pytest.mark.parametrize("action", [SpikeAction.ALERT, SpikeAction.SKIP])
def test_a_spike_that_is_only_told_is_trained_and_one_that_is_skipped_is_not(
    tmp_path: Path, action: SpikeAction
) -> None:
    config = config_of(tmp_path, action)
    assert world(config, tmp_path, 2, 1, SPIKE) == done(2)
    found = counted(config)
    assert (found.steps, found.samples_skipped) == (40, 0)
    metrics = (tmp_path / "state-1/metrics.prom").read_text()
    assert f'skywork_train_spikes_total{{action="{action}",' in metrics
    refused = 1.0 if action is SpikeAction.SKIP else 0.0
    assert f'skywork_train_nonfinite_steps_total{{namespace="n",run="r",stage="s0"}} {refused}' in metrics
