"""The micro-batch that is reckoned, and what an engine's options need of the node."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from skywork_trainer.config import ActivationCheckpointing, Engine, Kernels, Model, Offload
from skywork_trainer.engine.fitting import UNKNOWN_MEMORY_SEQUENCES, fitting_sequences, sequence_bytes, state_bytes
from skywork_trainer.engine.requirements import EngineUnsupported, check_requirements
from skywork_trainer.flops import matrix_parameters

from tests.unit.train_config import run_config

GIB = 1 << 30
MODEL = Model(layers=24, hidden=2048, heads=16, kv_heads=16, ffn=5632, vocab_size=65536)


def config(folder: Path, *, batch: int = 64, **engine: Any) -> Any:
    return run_config(folder, model=MODEL, sequence_length=4096, global_batch_sequences=batch, engine=Engine(**engine))


def test_each_zero_stage_spreads_more_of_the_state_over_the_ranks(tmp_path: Path) -> None:
    parameters = matrix_parameters(MODEL) + MODEL.hidden * MODEL.vocab_size
    at = [state_bytes(config(tmp_path, zero_stage=stage), 8) / parameters for stage in range(4)]
    assert at == pytest.approx([16.0, 2 + 4 + 12 / 8, 2 + 4 / 8 + 12 / 8, (2 + 4 + 12) / 8])
    offloaded = state_bytes(config(tmp_path, zero_stage=3, offload=Offload.CPU), 8) / parameters
    assert offloaded == pytest.approx((2 + 4) / 8)


def test_recomputing_keeps_less_of_every_sequence() -> None:
    none, selective, full = (
        sequence_bytes(MODEL, 4096, kept)
        for kept in (ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL)
    )
    assert none > selective > full > 4096 * 2 * MODEL.hidden * MODEL.layers


@pytest.mark.parametrize("memory", [8, 16, 24, 40, 80, 140, 1000])
def test_the_micro_batch_is_a_power_of_two_that_fits_and_twice_as_many_would_not(tmp_path: Path, memory: int) -> None:
    run = config(tmp_path, zero_stage=1, batch=512)
    size = fitting_sequences(run, 8, memory * GIB)
    assert size & (size - 1) == 0
    each = sequence_bytes(MODEL, 4096, ActivationCheckpointing.NONE)
    room = memory * GIB - state_bytes(run, 8)
    assert size == 1 or size * each < room
    assert size == 64 or 2 * size * each > 0.85 * memory * GIB - state_bytes(run, 8) - 12 * 4096 * MODEL.vocab_size


def test_no_rank_takes_more_than_its_part_of_the_global_batch(tmp_path: Path) -> None:
    assert fitting_sequences(config(tmp_path, batch=6), 2, 1000 * GIB) == 2
    assert fitting_sequences(config(tmp_path, batch=1), 8, 1000 * GIB) == 1


def test_where_no_memory_is_known_a_modest_micro_batch_is_taken(tmp_path: Path) -> None:
    assert fitting_sequences(config(tmp_path), 1, None) == UNKNOWN_MEMORY_SEQUENCES


def test_a_model_that_hardly_fits_is_tried_with_one_sequence(tmp_path: Path) -> None:
    assert fitting_sequences(config(tmp_path, zero_stage=0), 1, 4 * GIB) == 1


def test_what_needs_nothing_is_never_refused() -> None:
    check_requirements(Engine(), on_gpu=False)


def test_liger_on_cpus_is_refused_by_the_field_s_name() -> None:
    with pytest.raises(EngineUnsupported, match=r"engine\.kernels Liger needs GPUs"):
        check_requirements(Engine(kernels=Kernels.LIGER), on_gpu=False)


def test_liger_without_its_package_is_refused_with_the_package_s_name() -> None:
    # The lock file does not have it: images for GPUs add it.
    with pytest.raises(EngineUnsupported, match="needs the Python package liger-kernel"):
        check_requirements(Engine(kernels=Kernels.LIGER), on_gpu=True)


def test_compiling_without_a_compiler_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None
    with pytest.raises(EngineUnsupported, match=r"engine.compile needs a C\+\+ compiler") as refused:
        check_requirements(Engine(compile=True), on_gpu=False)
    assert refused.value.retryable is False
