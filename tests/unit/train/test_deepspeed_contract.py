"""What we take for granted of DeepSpeed, its private parts included; a new release has to pass this."""

import json
import os
from pathlib import Path

import pytest
from skywork_trainer.config import Engine, RunConfig

from tests.unit.train.world import BATCH, LENGTH, TOKENS_PER_STEP, done, run_config, start


def _steps(rank: int, size: int, port: int, config: RunConfig, folder: Path, kind: str) -> None:
    """Train four steps; write losses, norms and this rank's fragments."""
    import torch

    os.environ["PATH"] = "/nonexistent"  # no compiler, as in the pods
    from skywork_trainer.batch import micro_batches
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
    from skywork_trainer.engine.reference import ReferenceEngine
    from skywork_trainer.model import Decoder, initialise
    from skywork_trainer.worker import process_group

    from tests.unit.train.world import place

    torch.set_num_threads(1)
    with process_group(place(folder, rank=rank, size=size, port=port, generation=1)) as world:
        module, count = Decoder(config.model), micro_batches(config, size)
        initialise(module, 0)
        engine: ReferenceEngine | DeepSpeedEngine
        if kind == "reference":
            engine = ReferenceEngine(module, config.optimizer)
        else:
            engine = DeepSpeedEngine(module, config, micro_batches=count, bf16=kind == "bf16")
        curve = []
        for step in range(4):
            all_BS = torch.randint(0, 256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(step))
            tokens_RS, valid_RT = torch.zeros(2 * count, LENGTH + 1, dtype=torch.long), torch.zeros(2 * count, LENGTH)
            mine = all_BS[rank::size]
            tokens_RS[: len(mine)], valid_RT[: len(mine)] = mine, 1.0
            nll = 0.0
            for i in range(count):
                rows = slice(2 * i, 2 * i + 2)
                nll += float(
                    engine.forward_backward(
                        tokens_RS[rows], valid_RT[rows], global_tokens=TOKENS_PER_STEP, last=i == count - 1
                    )
                )
            norm = engine.step(1e-2)
            curve.append([world.sum([nll])[0] / TOKENS_PER_STEP, norm])
        fragments = [[f.span.name, f.span.start, [array.tolist() for array in f.arrays()]] for f in engine.fragments()]
        told = {"curve": curve, "fragments": fragments, "step": engine.optimizer_step}
        (folder / f"{rank}.json").write_text(json.dumps(told))


def outcome(
    folder: Path, *, kind: str, size: int, zero_stage: int = 1
) -> tuple[list[list[float]], dict[str, list[float]]]:
    """Return the curve and all state, put together from the ranks' fragments."""
    folder.mkdir()
    config = run_config(folder, engine=Engine(zero_stage=zero_stage, micro_batch_sequences=2))
    assert start(_steps, size, config, folder, kind).codes() == done(size)
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    assert {rank["step"] for rank in told} == {4}
    state: dict[str, list[float]] = {}
    for name, begin, arrays in sorted((f for rank in told for f in rank["fragments"]), key=lambda f: (f[0], f[1])):
        for kind_index, values in enumerate(arrays):
            whole = state.setdefault(f"{name}/{kind_index}", [])
            assert len(whole) == begin, f"{name} is not covered exactly once"
            whole.extend(values)
    return told[0]["curve"], state


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[float]], dict[str, list[float]]]:
    return outcome(tmp_path_factory.mktemp("contract") / "reference", kind="reference", size=1)


@pytest.mark.parametrize(("zero_stage", "size"), [(0, 1), (0, 2), (1, 1), (1, 3), (2, 2), (3, 1), (3, 3)])
def test_every_zero_stage_trains_as_plain_torch_does_and_its_fragments_cover_all_state_once(
    tmp_path: Path, reference: tuple[list[list[float]], dict[str, list[float]]], zero_stage: int, size: int
) -> None:
    curve, state = outcome(tmp_path / "w", kind="fp32", size=size, zero_stage=zero_stage)
    for ours, theirs in zip(curve, reference[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert state.keys() == reference[1].keys()
    for name, values in state.items():
        # Adam divides by the root of tiny second moments: where a gradient is nearly zero, rounding shows.
        assert values == pytest.approx(reference[1][name], abs=2e-4), name


@pytest.mark.parametrize(("zero_stage", "size"), [(1, 2), (2, 2), (3, 2)])
def test_bf16_keeps_fp32_masters_and_follows_the_fp32_curve(
    tmp_path: Path, reference: tuple[list[list[float]], dict[str, list[float]]], zero_stage: int, size: int
) -> None:
    curve, state = outcome(tmp_path / "w", kind="bf16", size=size, zero_stage=zero_stage)
    assert [loss for loss, _ in curve] == pytest.approx([loss for loss, _ in reference[0]], abs=5e-3)
    assert state.keys() == reference[1].keys()


def _warmth(rank: int, size: int, port: int, folder: Path) -> None:
    """In a fork of a preloaded process: count threads at the start, and modules that a first step still imports."""
    import sys

    threads, before = len(list(Path("/proc/self/task").iterdir())), set(sys.modules)
    from skywork_trainer.warmup import train_a_little

    train_a_little()
    late = sorted(set(sys.modules) - before)
    (folder / "told.json").write_text(
        json.dumps(
            {
                "threads": threads,
                "late": late,
                "dynamo": "torch._dynamo" in before,
                # Which a run that does not compile has no use for: a second of each pod's start.
                "inductor": "torch._inductor.compile_fx" in sys.modules,
                "boto3": "boto3.session" in before,
            }
        )
    )


def test_a_fork_of_a_preloaded_parent_is_single_threaded_and_imports_nothing_more(tmp_path: Path) -> None:
    assert start(_warmth, 1, tmp_path).codes() == [0]
    assert json.loads((tmp_path / "told.json").read_text()) == {
        "threads": 1, "late": [], "dynamo": True, "inductor": False, "boto3": True,
    }  # fmt: skip
