"""A micro-batch that does not fit: the same step again with half of it, in the next generation."""

from pathlib import Path

import pytest
from skywork_trainer.checkpoint.history import audit
from skywork_trainer.collectives import World
from skywork_trainer.config import EXIT_CONFIG, Engine, Failure, Progress, RunConfig
from skywork_trainer.memory import fitting_micro_batch, note_out_of_memory
from skywork_trainer.storage import open_store

from tests.unit.train.world import done, run_config, start, train, train_rank


def _with_little_memory(rank: int, size: int, port: int, config: RunConfig, folder: Path, generation: int) -> int:
    """Run a rank that from step 3 on has memory for half of the micro-batch configured; only the last is so small."""
    import torch
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine

    forward_backward = DeepSpeedEngine.forward_backward

    def small(engine: DeepSpeedEngine, tokens_BS: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        if (
            rank == size - 1
            and len(tokens_BS) > config.engine.micro_batch_sequences // 2
            and engine.optimizer_step >= 3
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward_backward(engine, tokens_BS, *others, **named)  # type: ignore[arg-type]

    DeepSpeedEngine.forward_backward = small  # type: ignore[method-assign,assignment]
    return train_rank(rank, size, port, config, folder, generation, None)


def failure(folder: Path, generation: int, rank: int) -> Failure:
    return Failure.model_validate_json((folder / f"state-{generation}/failure-{rank}.json").read_bytes())


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_the_step_that_ran_out_is_trained_again_in_halves(tmp_path: Path, zero_stage: int) -> None:
    engine = Engine(zero_stage=zero_stage, micro_batch_sequences=2)
    config = run_config(tmp_path, engine=engine)
    first = start(_with_little_memory, 2, config, tmp_path, 1)
    first.processes[1].join(60)
    first.kill(0)  # as the agent does once one worker has failed
    first.codes()
    told = failure(tmp_path, 1, 1)
    assert (told.reason, told.retryable) == ("OutOfMemory", True)
    assert "micro-batches of 2 sequences do not fit in memory; the next generation tries 1" in told.message
    assert start(_with_little_memory, 2, config, tmp_path, 2).codes() == done(2)
    progress = Progress.model_validate_json((tmp_path / "state-2/progress.json").read_bytes())
    assert (progress.step, progress.micro_batch_sequences) == (8, 1)
    counted = audit(open_store(config.checkpoints.uri))
    assert (counted.samples_lost, counted.samples_repeated) == (0, 0)
    (tmp_path / "whole").mkdir()
    whole = run_config(tmp_path / "whole", engine=engine)
    assert train(whole, tmp_path / "whole", size=2) == done(2)
    assert counted.losses == pytest.approx(audit(open_store(whole.checkpoints.uri)).losses, abs=2e-5)


def test_one_sequence_that_does_not_fit_fails_the_run_with_advice(tmp_path: Path) -> None:
    config = run_config(tmp_path, engine=Engine(micro_batch_sequences=1))
    assert start(_with_little_memory, 1, config, tmp_path, 1).codes() == [EXIT_CONFIG]
    assert "use engine.activationCheckpointing, a higher engine.zeroStage" in failure(tmp_path, 1, 0).message


def test_what_does_not_fit_is_known_of_the_same_model_and_device_only(tmp_path: Path) -> None:
    store, config = open_store(tmp_path.as_uri()), run_config(tmp_path, engine=Engine(micro_batch_sequences=8))
    note_out_of_memory(store, config, "NVIDIA A100")
    assert fitting_micro_batch(store, config, "NVIDIA A100", World()) == 4
    assert fitting_micro_batch(store, config, "NVIDIA H100", World()) == 8
    longer = config.model_copy(update={"sequence_length": 32})
    assert fitting_micro_batch(store, longer, "NVIDIA A100", World()) == 8
    smaller = config.model_copy(update={"engine": Engine(micro_batch_sequences=3)})
    assert fitting_micro_batch(store, smaller, "NVIDIA A100", World()) == 3
    (key,) = store.list("memory/")
    store.put(key, b'{"too_large": 1}')
    assert fitting_micro_batch(store, config, "NVIDIA A100", World()) == 8
