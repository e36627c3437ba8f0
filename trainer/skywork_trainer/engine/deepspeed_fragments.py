"""Everything that reaches into DeepSpeed's private parts; tests/unit/train/test_deepspeed_contract.py holds it to that.

ZeRO stages 1 and 2, and the bf16 optimizer, flatten each parameter group, pad it, and give every rank one partition in
fp32. `parameter._hp_mapping` says which elements of a parameter lie in this rank's partition, and where.
"""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from skywork_trainer.engine import Fragment, Reader, Span
from skywork_trainer.model import Decoder

_NO_COMPILER = "TORCHDYNAMO_DISABLE"


def forbid_compilation() -> None:
    """Keep DeepSpeed from building its shared-memory collectives when the process group starts, and from its compiler.

    The collectives are wrong across pods (each has its own /dev/shm) and need a compiler that the image does not have.
    And an optimizer that is not ours has a function compiled: to import that, unused, would bring in all of Inductor,
    which is a second of every pod's start.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    before = os.environ.get(_NO_COMPILER)
    os.environ[_NO_COMPILER] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if before is None:
            del os.environ[_NO_COMPILER]
        else:
            os.environ[_NO_COMPILER] = before


def step_count(optimizer: torch.optim.Optimizer, steps: int) -> Tensor | int:
    """Return the count of updates as the optimizer keeps it: a tensor in torch's AdamW, a number in DeepSpeed's."""
    return torch.tensor(float(steps)) if isinstance(optimizer, torch.optim.AdamW) else steps


def empty_moments(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor | int]:
    """Return the state of a flat master before the first update."""
    return {
        "step": step_count(optimizer, 0),
        "exp_avg": torch.zeros_like(flat),
        "exp_avg_sq": torch.zeros_like(flat),
    }


class PartitionedState:
    """Fragments of an engine of ZeRO stage 1 or 2."""

    def __init__(self, module: Decoder, zero_optimizer: Any) -> None:
        self.module = module
        self._adamw: torch.optim.AdamW = zero_optimizer.optimizer
        self._zero = zero_optimizer
        for group in self._adamw.param_groups:
            for flat in group["params"]:
                # Made now, not at the first update, where DeepSpeed leaves it to Adam: a restore needs them in place.
                self._adamw.state[flat] = empty_moments(self._adamw, flat)

    @property
    def optimizer_step(self) -> int:
        """Updates applied so far; DeepSpeed skips those whose gradients are not finite."""
        return int(next(iter(self._adamw.state.values()))["step"])

    def fragments(self) -> list[Fragment]:
        """Return what lies in this rank's partitions."""
        return [fragment for _, fragment in self._held()]

    @torch.no_grad()
    def load(self, read: Reader, *, optimizer_step: int) -> None:
        """Fill this rank's partitions, then put the model's weights together from all ranks' masters."""
        held = {}
        for parameter, fragment in self._held():
            held[id(parameter)] = fragment
            for target, source in zip(fragment.arrays(), read(fragment.span), strict=True):
                target.copy_(source)
        for state in self._adamw.state.values():
            state["step"] = step_count(self._adamw, optimizer_step)
        for parameter in self.module.parameters():
            parameter.zero_()
            if fragment_ := held.get(id(parameter)):
                part = parameter.view(-1).narrow(0, fragment_.span.start, fragment_.span.length)
                part.copy_(fragment_.master)
            # Partitions are disjoint: a sum with zeros is an all-gather that needs no layout.
            dist.all_reduce(parameter)

    @torch.no_grad()
    def spoil_gradients(self) -> None:
        """Make the gradients of the step infinite, so that DeepSpeed drops it, with all it keeps of them."""
        groups = getattr(self._zero, "averaged_gradients", None)
        if groups is None:  # the bf16 optimizer, in which every rank holds the sum of all
            flat = list(self._zero.fp32_groups_gradients_flat)
        else:
            flat = [gradient for group in groups.values() for gradient in group or ()]
        for gradient in flat:
            gradient.fill_(float("inf"))

    def _held(self) -> Iterator[tuple[torch.nn.Parameter, Fragment]]:
        for name, parameter in self.module.named_parameters():
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is None:
                continue
            (flat,) = self._adamw.param_groups[mapping.param_group_index]["params"]
            state, address = self._adamw.state[flat], mapping.hp_fragment_address
            master, first, second = (
                tensor.detach().narrow(0, address.start, address.numel)
                for tensor in (flat, state["exp_avg"], state["exp_avg_sq"])
            )
            span = Span(name, mapping.lp_fragment_address.start, address.numel)
            yield parameter, Fragment(span, master, first, second)
