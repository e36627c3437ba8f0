"""What a rank of these tests does: make an engine, train steps on tokens that depend on the step's number only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skywork_trainer.collectives import World
from skywork_trainer.config import ActivationCheckpointing, Engine, RunConfig

from tests.unit.train.world import BATCH, LENGTH, TOKENS_PER_STEP, place, run_config

ROWS = 2
"""Sequences of a micro-batch."""


def config_of(folder: Path, zero_stage: int, **engine: object) -> RunConfig:
    """Return a run of one ZeRO stage."""
    values = {"zero_stage": zero_stage, "micro_batch_sequences": ROWS} | engine
    return run_config(folder, engine=Engine.model_validate(values))


@contextmanager
def joined(folder: Path, rank: int, size: int, port: int) -> Iterator[World]:
    """Join a group of gloo."""
    import torch
    from skywork_trainer.worker import process_group

    torch.set_num_threads(1)
    with process_group(place(folder, rank=rank, size=size, port=port, generation=1)) as world:
        yield world


class Rank:
    """One rank's engine, as the worker builds it, with the run's initial weights."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        *,
        bf16: bool = False,
        recompute: ActivationCheckpointing = ActivationCheckpointing.NONE,
    ) -> None:
        import torch
        from skywork_trainer.batch import micro_batches
        from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
        from skywork_trainer.engine.initial import draw_weights
        from skywork_trainer.model import Decoder

        with torch.device("meta"):
            self.module = Decoder(config.model, recompute=recompute)
        self.config, self.world = config, world
        self.micro_batches = micro_batches(config, world.size)
        self.engine = DeepSpeedEngine(self.module, config, micro_batches=self.micro_batches, bf16=bf16)
        draw_weights(config, self.engine)

    def train(self, steps: range) -> list[float]:
        """Train; return the loss of each step."""
        return [self._step(step) for step in steps]

    def _step(self, step: int) -> float:
        import torch

        all_BS = torch.randint(0, 256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        rows, mine = self.micro_batches * ROWS, all_BS[self.world.rank :: self.world.size]
        tokens_RS, valid_RT = torch.zeros(rows, LENGTH + 1, dtype=torch.long), torch.zeros(rows, LENGTH)
        tokens_RS[: len(mine)], valid_RT[: len(mine)] = mine, 1.0
        nll = 0.0
        for first in range(0, rows, ROWS):
            part, last = slice(first, first + ROWS), first + ROWS == rows
            given = {"global_tokens": TOKENS_PER_STEP, "last": last}
            nll += float(self.engine.forward_backward(tokens_RS[part], valid_RT[part], **given))  # type: ignore[arg-type]
        self.engine.step(1e-2)
        return self.world.sum([nll])[0] / TOKENS_PER_STEP
