"""The seam between the training loop and what updates the parameters: five calls, two implementations.

DeepSpeed is the product; the plain-torch engine is the reference that tests compare it with. Both keep AdamW state in
fp32 and expose it as fragments: *this rank answers for elements [start, start + n) of flattened parameter p, and the
same range of both moments*. That is all a checkpoint needs to know, whatever the world size or the ZeRO stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from skywork_trainer.model import Decoder, RMSNorm

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""The three fp32 arrays of every fragment, in the order in which they are stored."""


@dataclass(frozen=True)
class Span:
    """Elements [start, start + length) of the flattened parameter `name`."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Fragment:
    """One span with its live state: 1-D fp32 views, to be copied or filled, not kept over a step."""

    span: Span
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three arrays in the order of KINDS."""
        return self.master, self.exp_avg, self.exp_avg_sq


Reader = Callable[[Span], tuple[Tensor, Tensor, Tensor]]
"""Returns the three arrays of a span, in the order of KINDS."""


class Engine(Protocol):
    """What the training loop asks of an engine; `build_*` functions make one."""

    module: Decoder
    """The model with the newest weights, for evaluation."""

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Add the gradient of sum NLL / `global_tokens` of one micro-batch; return its summed NLL.

        `last` marks the last micro-batch of a step. All ranks must make the same number of calls.
        """
        ...

    def step(self, learning_rate: float) -> float:
        """Sum the gradients over ranks, clip, update; return the gradient norm before clipping.

        A norm that is not finite, on any rank, leaves weights, moments and step count as they are on all of them.
        """
        ...

    def skip(self) -> None:
        """End the step without an update: its gradients are forgotten. Collective, in the place of `step`."""
        ...

    def forward_seconds(self) -> float | None:
        """Return how long this rank's forward passes have taken since the last call, to be made behind `step`.

        None where a forward pass also waits for other ranks, so that it says nothing of this one.
        """
        ...

    def fragments(self) -> list[Fragment]:
        """Return this rank's share: over all ranks, every element of every parameter exactly once."""
        ...

    def load_fragments(self, read: Reader, *, optimizer_step: int) -> None:
        """Fill all state this rank holds from `read`; collective."""
        ...

    @property
    def optimizer_step(self) -> int:
        """Updates applied so far, for the bias correction of Adam."""
        ...


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's parameter groups: matrices decay, gains do not."""
    # By module, not by shape: a parameter that stage 3 has partitioned has none.
    gains = {id(norm.weight) for norm in module.modules() if isinstance(norm, RMSNorm)}
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if id(p) not in gains], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in gains], "weight_decay": 0.0},
    ]


def shares(module: nn.Module, *, rank: int, world: int) -> list[Span]:
    """Return rank's even share of all parameters laid end to end: for engines in which every rank holds everything."""
    total = sum(p.numel() for p in module.parameters())
    low, high = total * rank // world, total * (rank + 1) // world
    spans, offset = [], 0
    for name, parameter in module.named_parameters():
        start, stop = max(low - offset, 0), min(high - offset, parameter.numel())
        if start < stop:
            spans.append(Span(name, start, stop - start))
        offset += parameter.numel()
    return spans
