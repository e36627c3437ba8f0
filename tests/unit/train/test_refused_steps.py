"""A step whose gradients are not finite, or that is skipped, leaves no trace in any engine."""

import json
from pathlib import Path

import pytest
from skywork_trainer.config import Engine, RunConfig

from tests.unit.train.world import BATCH, LENGTH, TOKENS_PER_STEP, done, run_config, start

REFUSED = 2


def _train(rank: int, size: int, port: int, config: RunConfig, folder: Path, kind: str, refusal: str) -> None:
    """Train steps 0, 1, 3, 4, and step 2 only to refuse it; write norms and this rank's state."""
    import torch
    from skywork_trainer.batch import micro_batches
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
    from skywork_trainer.engine.reference import ReferenceEngine
    from skywork_trainer.model import Decoder, initialise
    from skywork_trainer.worker import process_group

    from tests.unit.train.world import place

    torch.set_num_threads(1)
    with process_group(place(folder, rank=rank, size=size, port=port, generation=1)):
        module, count = Decoder(config.model), micro_batches(config, size)
        initialise(module, 0)
        engine: ReferenceEngine | DeepSpeedEngine
        if kind == "reference":
            engine = ReferenceEngine(module, config.optimizer)
        else:
            engine = DeepSpeedEngine(module, config, micro_batches=count, bf16=kind == "bf16")
        norms = []
        for step in range(5):
            if step == REFUSED and not refusal:
                continue
            spoilt = step == REFUSED and refusal == "not finite" and rank == size - 1
            hook = module.head.weight.register_hook(lambda grad: grad * float("inf")) if spoilt else None
            tokens_BS = torch.randint(0, 256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(step))
            mine = tokens_BS[rank::size]
            for i in range(count):
                rows = mine[2 * i : 2 * i + 2]
                engine.forward_backward(
                    rows, torch.ones(len(rows), LENGTH), global_tokens=TOKENS_PER_STEP, last=i == count - 1
                )
            if step == REFUSED and refusal == "skipped":
                engine.skip()
            else:
                norms.append(engine.step(1e-2))
            if hook:
                hook.remove()
        state = [[f.span.name, f.span.start, *(array.tolist() for array in f.arrays())] for f in engine.fragments()]
        told = {"norms": [str(norm) for norm in norms], "state": state, "step": engine.optimizer_step}
        (folder / f"{rank}.json").write_text(json.dumps(told))


def outcome(folder: Path, kind: str, size: int, zero_stage: int, refusal: str) -> list[dict[str, object]]:
    folder.mkdir()
    config = run_config(folder, engine=Engine(zero_stage=zero_stage, micro_batch_sequences=2))
    assert start(_train, size, config, folder, kind, refusal).codes() == done(size)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize(
    ("kind", "size", "zero_stage"),
    [("reference", 1, 0), *(("fp32", 3, stage) for stage in range(4)), *(("bf16", 3, stage) for stage in (1, 2, 3))],
)
def test_a_refused_step_changes_neither_weights_nor_moments_on_any_rank(
    tmp_path: Path, kind: str, size: int, zero_stage: int
) -> None:
    without = outcome(tmp_path / "without", kind, size, zero_stage, "")
    for refusal in ("not finite", "skipped"):
        refused = outcome(tmp_path / refusal, kind, size, zero_stage, refusal)
        for ours, theirs in zip(refused, without, strict=True):
            assert ours["state"] == theirs["state"], refusal
            assert ours["step"] == theirs["step"] == 4
        if refusal == "not finite":
            assert all(rank["norms"][REFUSED] in ("inf", "nan") for rank in refused)  # type: ignore[index]
