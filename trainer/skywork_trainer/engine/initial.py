"""How an engine comes by random weights: alike for every world, ZeRO stage and precision."""

import torch
from torch import Tensor

from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Engine, Span
from skywork_trainer.model import InitialWeights


def draw_weights(config: RunConfig, engine: Engine) -> None:
    """Fill the engine with the run's initial weights, moments and step count zero; collective.

    Each rank draws the masters it answers for. Drawn into the fp32 masters and not into the module, they are the same
    whether or not the module is kept in bf16.
    """
    initial = InitialWeights(config.model, config.seed)

    def read(span: Span) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.zeros(1).expand(span.length)
        return initial.draw(span.name, span.start, span.length), none, none

    engine.load_fragments(read, optimizer_step=0)
