"""Held-out loss per domain, bit-identical for any world size.

Windows are cut into fixed batches before they are dealt to ranks, so a window always shares its batch with the same
others; every rank fills in its own windows' losses, zeros elsewhere, and the sum over ranks is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skywork_trainer.collectives import World
from skywork_trainer.config import DomainLoss
from skywork_trainer.model import Decoder


@dataclass(frozen=True)
class Windows:
    """One domain's fixed windows: tokens [W, T + 1], and which of the T targets count."""

    domain: str
    tokens_WS: npt.NDArray[np.int64]
    valid_WT: npt.NDArray[np.bool_]


@torch.no_grad()
def validate(
    module: Decoder, domains: Sequence[Windows], *, step: int, batch: int, world: World
) -> tuple[DomainLoss, ...]:
    """Return the loss of every domain after `step` steps; collective."""
    module.eval()
    losses = tuple(_measure(module, windows, step=step, batch=batch, world=world) for windows in domains)
    module.train()
    return losses


def _measure(module: Decoder, windows: Windows, *, step: int, batch: int, world: World) -> DomainLoss:
    count = len(windows.tokens_WS)
    nll_W = torch.zeros(count, dtype=torch.float64)
    for start in range(world.rank * batch, count, world.size * batch):
        tokens_BS = _to_device(windows.tokens_WS[start : start + batch], world.device).long()
        valid_BT = _to_device(windows.valid_WT[start : start + batch], world.device).float()
        nll_W[start : start + batch] = module(tokens_BS, valid_BT).double().cpu()
    total = sum(world.sum(nll_W.tolist()))
    tokens = int(windows.valid_WT.sum())
    return DomainLoss(domain=windows.domain, loss=total / max(tokens, 1), tokens=tokens, step=step)


def _to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
