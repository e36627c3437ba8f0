"""Random weights that any rank can draw any part of: alike for every world, ZeRO stage and precision.

Each block of a parameter has a generator of its own, seeded by the run's seed, the parameter's name and the block's
number, so that a rank draws its own pieces and little more, and nobody ever holds a whole model to cut it up.
"""

import hashlib

import torch
from torch import Tensor

from skywork_trainer.config import Model
from skywork_trainer.model.decoder import Decoder

_BLOCK_ELEMENTS = 1 << 20


class InitialWeights:
    """The weights a run begins with: matrices from N(0, init_std^2), gains one."""

    def __init__(self, model: Model, seed: int) -> None:
        with torch.device("meta"):
            self._shapes = {name: parameter.shape for name, parameter in Decoder(model).named_parameters()}
        self._std, self._seed = model.init_std, seed

    def draw(self, name: str, start: int, length: int) -> Tensor:
        """Return elements [start, start + length) of the flattened parameter `name`, fp32, on the CPU."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(length)
        values, end = torch.empty(length), start + length
        for block in range(start // _BLOCK_ELEMENTS, -(-end // _BLOCK_ELEMENTS)):
            begin = block * _BLOCK_ELEMENTS
            drawn = torch.empty(min(_BLOCK_ELEMENTS, shape.numel() - begin))
            drawn.normal_(0.0, self._std, generator=self._generator(name, block))
            low, high = max(begin, start), min(begin + len(drawn), end)
            values[low - start : high - start] = drawn[low - begin : high - begin]
        return values

    def _generator(self, name: str, block: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}/{name}/{block}".encode()).digest()
        return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Fill a decoder with its initial weights."""
    initial = InitialWeights(decoder.geometry, seed)
    for name, parameter in decoder.named_parameters():
        parameter.copy_(initial.draw(name, 0, parameter.numel()).view_as(parameter))
