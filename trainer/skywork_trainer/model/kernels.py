"""Norm and activation, by torch or by Liger's fused Triton kernels.

The kernels of Liger have not been run by our tests, which have no GPU: they are called by their published signatures.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from skywork_trainer.config import Kernels


class Operations(NamedTuple):
    """The operations that have more than one implementation."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """x, gain and epsilon: x over its root mean square, times the gain."""
    silu_times: Callable[[Tensor, Tensor], Tensor]
    """silu(gate) * up."""


def operations(kernels: Kernels) -> Operations:
    """Return the operations of one kind; engine.requirements has checked that they can be had."""
    return _liger() if kernels is Kernels.LIGER else TORCH


def _rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gain, epsilon)


TORCH = Operations(_rms_norm, lambda gate, up: F.silu(gate) * up)


def _liger() -> Operations:
    import importlib

    norm: Any = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
    product: Any = importlib.import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction
    # Not in place: the gradient that came in may still be needed, by the residual stream it also goes to.
    return Operations(lambda x, gain, epsilon: norm.apply(x, gain, epsilon, 0.0, "llama", False), product.apply)
