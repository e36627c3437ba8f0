"""The learning rate follows the plan and needs no state."""

from pathlib import Path

import pytest
from skywork_trainer.config import LearningRate, Schedule
from skywork_trainer.schedule import learning_rate, stage_of_step

from tests.unit.train.world import TOKENS_PER_STEP, run_config


def test_a_cosine_warms_up_to_its_peak_and_ends_on_its_final_rate(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(10,))
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates[0] == pytest.approx(5e-3)
    assert max(rates) == rates[1] == 1e-2
    assert rates[-1] == pytest.approx(1e-3)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_constant_without_a_peak_goes_on_at_the_terminal_rate_of_the_stage_before(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(10, 5, 5))
    assert {learning_rate(config, step) for step in range(9, 20)} == {learning_rate(config, 9)}
    assert learning_rate(config, 999) == learning_rate(config, 19)


def test_a_constant_with_a_peak_warms_up_and_holds_it(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(4,))
    rate = LearningRate(schedule=Schedule.CONSTANT, peak=0.5, warmup_tokens=2 * TOKENS_PER_STEP)
    stage = config.stages[0].model_copy(update={"learning_rate": rate})
    config = config.model_copy(update={"stages": (stage,)})
    assert [learning_rate(config, step) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


def test_steps_know_their_stage(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(2, 3))
    assert [stage_of_step(config, step).name for step in range(6)] == ["s0", "s0", "s1", "s1", "s1", "s1"]
