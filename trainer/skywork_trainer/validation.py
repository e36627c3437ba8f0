"""Held-out loss per domain, bit-identical for any world size.

Windows are cut into fixed batches before they are dealt to ranks, so a window always shares its batch with the same
others; every rank fills in its own windows' losses, zeros elsewhere, and the sum over ranks is exact.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skywork_trainer.collectives import World
from skywork_trainer.config import DomainLoss
from skywork_trainer.model import Decoder
from skywork_trainer.windows import Windows

BATCH_SEQUENCES = 4
"""Of one forward pass; not the micro-batch, which may differ from world to world and shrink when memory runs out."""
_ASK_EVERY_ROUNDS = 8


@torch.no_grad()
def validate(
    module: Decoder,
    domains: Sequence[Windows],
    *,
    step: int,
    world: World,
    leave: Callable[[], bool] = lambda: False,
    over: Callable[[], bool] = lambda: False,
    beat: Callable[[], None] = lambda: None,
    batch: int = BATCH_SEQUENCES,
) -> tuple[DomainLoss, ...] | None:
    """Return the losses after `step` steps, in the order of `domains`; None, on all ranks, once `leave()` on any.

    Domains behind the first are left out once `over()` on rank 0, for all ranks alike. `beat` is called with every
    batch, to show that there is progress. Collective.
    """
    losses: list[DomainLoss] = []
    module.eval()
    try:
        for windows in domains:
            if losses and any(world.sum([over() if world.rank == 0 else False])):
                break
            loss = _measure(module, windows, step=step, batch=batch, world=world, leave=leave, beat=beat)
            if loss is None:
                return None
            losses.append(loss)
    finally:
        module.train()
    return tuple(losses)


def by_age(domains: Sequence[Windows], newest: Sequence[DomainLoss]) -> list[Windows]:
    """Return the domains with those first whose last measurement is oldest, so that a budget starves none."""
    measured = {loss.domain: loss.step for loss in newest}
    return sorted(domains, key=lambda windows: measured.get(windows.domain, -1))


def merged(
    domains: Sequence[str], before: Sequence[DomainLoss], measured: Sequence[DomainLoss]
) -> tuple[DomainLoss, ...]:
    """Return the newest loss of every domain that has one, in the order of `domains`."""
    newest = {loss.domain: loss for loss in (*before, *measured)}
    return tuple(newest[domain] for domain in domains if domain in newest)


def _measure(
    module: Decoder,
    windows: Windows,
    *,
    step: int,
    batch: int,
    world: World,
    leave: Callable[[], bool],
    beat: Callable[[], None],
) -> DomainLoss | None:
    count = len(windows.tokens_WS)
    nll_W = torch.zeros(count, dtype=torch.float64)
    for round_, first in enumerate(range(0, count, world.size * batch)):
        # Whoever is asked to leave has a grace period that may be shorter than a domain.
        if round_ % _ASK_EVERY_ROUNDS == 0 and any(world.sum([leave()])):
            return None
        beat()
        start = first + world.rank * batch
        mine = slice(start, start + batch) if start < count else slice(0, 1)
        tokens_BS = _to_device(windows.tokens_WS[mine], world.device).long()
        valid_BT = _to_device(windows.valid_WT[mine], world.device).float()
        # A rank that is out of windows computes one for nothing: ZeRO-3 gathers weights from all ranks in each forward.
        nll_B = module(tokens_BS, valid_BT).double().cpu()
        if start < count:
            nll_W[mine] = nll_B
    total = sum(world.sum(nll_W.tolist()))
    tokens = int(windows.valid_WT.sum())
    return DomainLoss(domain=windows.domain, loss=total / max(tokens, 1), tokens=tokens, step=step)


def _to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
