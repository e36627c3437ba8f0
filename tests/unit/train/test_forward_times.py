"""A slow machine is told from those that wait for it, by what its own forward passes take."""

import time
from pathlib import Path
from typing import Any

import pytest
from skywork_trainer.config import Engine, RunConfig
from skywork_trainer.heartbeat import read_beat

from tests.unit.train.world import done, run_config, start, train, train_rank

SLOW_SECONDS = 0.05


def train_slowly(rank: int, size: int, port: int, config: RunConfig, folder: Path) -> int:
    """Train as any rank, rank 1 on a machine that is slow."""
    from skywork_trainer.model import Decoder

    forward = Decoder.forward

    def slow(self: Decoder, *arguments: Any) -> Any:
        until = time.perf_counter() + SLOW_SECONDS
        while time.perf_counter() < until:
            pass
        return forward(self, *arguments)

    if rank == 1:
        Decoder.forward = slow  # type: ignore[method-assign]
    return train_rank(rank, size, port, config, folder, 1, None)


def spent(folder: Path, rank: int) -> float:
    beat = read_beat(folder / "state-1", rank)
    assert beat is not None
    return beat.forward_seconds


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_each_rank_tells_what_its_own_forward_passes_take(tmp_path: Path, zero_stage: int) -> None:
    config = run_config(tmp_path, engine=Engine(zero_stage=zero_stage, micro_batch_sequences=1))
    assert start(train_slowly, 3, config, tmp_path).codes() == done(3)
    # Two micro-batches a step.
    assert spent(tmp_path, 1) > 2 * SLOW_SECONDS
    assert max(spent(tmp_path, 0), spent(tmp_path, 2)) < 2 * SLOW_SECONDS
    assert min(spent(tmp_path, 0), spent(tmp_path, 2)) > 0


def test_where_forward_passes_wait_for_other_ranks_nothing_is_told(tmp_path: Path) -> None:
    config = run_config(tmp_path, engine=Engine(zero_stage=3, micro_batch_sequences=2))
    assert train(config, tmp_path, size=2) == done(2)
    assert spent(tmp_path, 0) == spent(tmp_path, 1) == 0.0
