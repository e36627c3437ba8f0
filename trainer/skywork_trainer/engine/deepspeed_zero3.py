"""What reaches into DeepSpeed's private parts for ZeRO stage 3.

tests/unit/train/test_deepspeed_contract.py and tests/unit/engine/test_resharding.py hold it to that.

Stage 3 cuts every parameter on its own: rank r of n answers for elements [r c, (r + 1) c) with c = ceil(numel / n), the
last ranks for fewer or none. Weights, masters and moments of these pieces lie end to end in flat tensors, one for each
sub-group of parameters; `grad_position` of the optimizer says where.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules

from skywork_trainer.engine import Fragment, Reader, Span
from skywork_trainer.engine.deepspeed_fragments import empty_moments, step_count
from skywork_trainer.model import Block, Decoder


def partition(module: Decoder, settings: Mapping[str, object], *, device: torch.device, dtype: torch.dtype) -> None:
    """Make the weights of a module on the meta device and leave every rank its part of each, all zero; collective.

    One layer's matrix is whole at a time, so that a model fits which no rank could hold. The price is a broadcast of
    every matrix, once, when a generation starts.
    """
    for leaf in module.modules():
        own = dict(leaf.named_parameters(recurse=False))
        for name, parameter in own.items():
            setattr(leaf, name, torch.nn.Parameter(torch.zeros(parameter.shape, dtype=dtype, device=device)))
        if own:
            deepspeed.zero.Init(module=leaf, config_dict_or_path=dict(settings), dtype=dtype)


def gather_by_block(module: Decoder) -> None:
    """Have stage 3 gather the weights of a whole layer at once; call it before DeepSpeed takes the module.

    A layer is what the backward pass computes again, and that must not run DeepSpeed's hooks: see `Block`.
    """
    set_z3_leaf_modules(module, [Block])


class ShardedState:
    """Fragments of an engine of ZeRO stage 3."""

    def __init__(self, module: Decoder, zero_optimizer: Any) -> None:
        self.module, self._zero = module, zero_optimizer
        self._adamw: torch.optim.AdamW = zero_optimizer.optimizer
        for flat in zero_optimizer.fp32_partitioned_groups_flat:
            # Made now, not at the first update, where DeepSpeed leaves it to Adam: a restore needs them in place.
            self._adamw.state[flat] = empty_moments(self._adamw, flat)

    @property
    def optimizer_step(self) -> int:
        """Updates applied so far; DeepSpeed skips those whose gradients are not finite."""
        return int(next(iter(self._adamw.state.values()))["step"])

    def fragments(self) -> list[Fragment]:
        """Return what this rank holds of each parameter; nothing of those that have fewer elements than ranks."""
        return list(self._held())

    @torch.no_grad()
    def load(self, read: Reader, *, optimizer_step: int) -> None:
        """Fill this rank's masters and moments, then the weights from the masters."""
        for flat in self._zero.fp32_partitioned_groups_flat:
            # What pads the last ranks' pieces is memory as it was found, and AdamW works on it, too.
            flat.zero_()
        for fragment in self._held():
            for target, source in zip(fragment.arrays(), read(fragment.span), strict=True):
                target.copy_(source)
        for state in self._adamw.state.values():
            state["step"] = step_count(self._adamw, optimizer_step)
        # As DeepSpeed does behind an update: small parameters are kept whole, and would else keep their old values.
        self._zero._partition_all_parameters()
        for sub_group in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        if persistent := self._zero.persistent_parameters:
            persistent[0].all_gather(persistent)

    @torch.no_grad()
    def spoil_gradients(self) -> None:
        """Make the gradients of the step infinite, so that DeepSpeed drops it, with all it keeps of them."""
        if self._zero.offload_optimizer:  # what lies on the host is not looked at again, only these norms are
            self._zero.norm_for_param_grads = dict.fromkeys(self._zero.norm_for_param_grads, torch.tensor(float("inf")))
            return
        rank = dist.get_rank()
        for sub_group, gradients in self._zero.averaged_gradients.items():
            for parameter, gradient in zip(self._zero.fp16_groups[sub_group], gradients or (), strict=False):
                # Not what pads them: no later step would write over it, and all of them would be dropped.
                gradient[: max(parameter.ds_numel - rank * len(gradient), 0)] = float("inf")

    def _held(self) -> Iterator[Fragment]:
        rank = dist.get_rank()
        for name, parameter in self.module.named_parameters():
            index, offset, most = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = rank * most
            length = min(most, parameter.ds_numel - start)  # type: ignore[attr-defined]
            if length <= 0:
                continue
            flat = self._zero.fp32_partitioned_groups_flat[index]
            state = self._adamw.state[flat]
            master, first, second = (
                tensor.detach().narrow(0, offset, length) for tensor in (flat, state["exp_avg"], state["exp_avg_sq"])
            )
            yield Fragment(Span(name, start, length), master, first, second)
