"""Plain torch, everything replicated: what DeepSpeed's arithmetic is compared with in tests."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from skywork_trainer.config import Optimizer
from skywork_trainer.engine import Fragment, Reader, Span, decay_groups, shares
from skywork_trainer.engine.timing import ForwardTimer
from skywork_trainer.model import Decoder


class ReplicatedState:
    """Fragments of an AdamW whose parameters and moments every rank holds whole, in fp32."""

    def __init__(self, module: Decoder, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        for parameter in module.parameters():
            # Made now, not at the first update: a restore has to find the moments in place.
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def fragments(self, *, rank: int, world: int) -> list[Fragment]:
        """Return this rank's even share of what all hold."""
        return [self._fragment(span) for span in shares(self.module, rank=rank, world=world)]

    @torch.no_grad()
    def load(self, read: Reader, *, optimizer_step: int) -> None:
        """Fill every parameter and moment, and Adam's own step count."""
        for name, parameter in self.module.named_parameters():
            span = Span(name, 0, parameter.numel())
            for target, source in zip(self._fragment(span).arrays(), read(span), strict=True):
                target.copy_(source)
            self.optimizer.state[parameter]["step"].fill_(float(optimizer_step))

    def _fragment(self, span: Span) -> Fragment:
        parameter = self.module.get_parameter(span.name)
        state = self.optimizer.state[parameter]
        master, first, second = (
            tensor.detach().view(-1).narrow(0, span.start, span.length)
            for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])
        )
        return Fragment(span, master, first, second)


class ReferenceEngine:
    """AdamW over replicated parameters; gradients are all-reduced one by one."""

    def __init__(self, module: Decoder, optimizer: Optimizer) -> None:
        self.module, self._clip = module, optimizer.gradient_clipping
        betas = (optimizer.beta1, optimizer.beta2)
        groups = decay_groups(module, optimizer.weight_decay)
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=optimizer.epsilon)
        self._state = ReplicatedState(module, self._adamw)
        distributed = dist.is_initialized()
        self._rank, self._world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        self.optimizer_step = 0
        self._forward = ForwardTimer(next(module.parameters()).device)

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Add one micro-batch's gradient."""
        with self._forward():
            nll: Tensor = self.module(tokens_BS, valid_BT).sum()
        (nll / global_tokens).backward()  # type: ignore[no-untyped-call]
        return nll.detach()

    def step(self, learning_rate: float) -> float:
        """Sum over ranks, clip, update."""
        for parameter in self.module.parameters():
            if self._world > 1 and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clip or float("inf")))
        if math.isfinite(norm):
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate
            self._adamw.step()
            self.optimizer_step += 1
        self._adamw.zero_grad()
        return norm

    def forward_seconds(self) -> float | None:
        """Return what forward passes took since the last call."""
        return self._forward.take()

    def skip(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad()

    def fragments(self) -> list[Fragment]:
        """Return this rank's even share."""
        return self._state.fragments(rank=self._rank, world=self._world)

    def load_fragments(self, read: Reader, *, optimizer_step: int) -> None:
        """Fill everything."""
        self._state.load(read, optimizer_step=optimizer_step)
        self.optimizer_step = optimizer_step
