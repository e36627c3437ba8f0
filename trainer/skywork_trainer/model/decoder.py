"""The decoder of the Skywork report: RMSNorm pre-norm, RoPE, SwiGLU, grouped-query attention, untied head.

Notable choices: rotary angles are computed in fp32 at every call, so that casting the module to bf16 cannot blunt
them; the loss comes per sequence, in fp32, and is computed in chunks of positions, so that the logits of a whole
batch (65,536 x 4 bytes per token) never exist at once.

Shape suffixes: B sequences, T positions, D hidden, N query heads, K key/value heads, H head dimension, V vocabulary,
P positions of one chunk (batch and time flattened). Rotary angles are [B, 1, T, H], with B = 1 where all sequences
count their positions alike.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from skywork_trainer.config import ActivationCheckpointing, Kernels, Model
from skywork_trainer.model import documents
from skywork_trainer.model.kernels import TORCH, Operations, operations

_LOSS_CHUNK_POSITIONS = 4096
_aten = torch.ops.aten
_KEPT_OPERATIONS = [
    _aten.mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What selective checkpointing does not compute again."""


def _rotate(x_BNTH: Tensor, cos_B1TH: Tensor, sin_B1TH: Tensor) -> Tensor:
    left, right = x_BNTH.float().chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x_BNTH.float() * cos_B1TH + turned * sin_B1TH).to(x_BNTH.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain."""

    def __init__(self, hidden: int, eps: float, compute: Operations = TORCH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps, self.compute = eps, compute

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return x scaled to unit root mean square, times the gain."""
        return self.compute.rms_norm(x_BTD, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention; every `heads / kv_heads` query heads share one key and value head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = model.heads, model.kv_heads, model.hidden // model.heads
        self.q = nn.Linear(model.hidden, model.hidden, bias=False)
        self.k = nn.Linear(model.hidden, model.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(model.hidden, model.kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(model.hidden, model.hidden, bias=False)

    def forward(self, x_BTD: Tensor, cos_B1TH: Tensor, sin_B1TH: Tensor, visible_B1TT: Tensor | None = None) -> Tensor:
        """Return the attended values, projected back to the hidden size; without a mask all earlier ones are seen."""
        batch, length, _ = x_BTD.shape
        q_BNTH = self.q(x_BTD).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k_BKTH = self.k(x_BTD).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v_BKTH = self.v(x_BTD).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q_BNTH, k_BKTH = _rotate(q_BNTH, cos_B1TH, sin_B1TH), _rotate(k_BKTH, cos_B1TH, sin_B1TH)
        grouped = self.heads != self.kv_heads
        if visible_B1TT is not None and grouped:
            # The memory-efficient CUDA kernel takes a mask but no groups; without it all T x T scores are kept.
            k_BKTH, v_BKTH = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k_BKTH, v_BKTH))
            grouped = False
        out_BNTH = F.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, attn_mask=visible_B1TT, is_causal=visible_B1TT is None, enable_gqa=grouped
        )
        out_BTD: Tensor = self.o(out_BNTH.transpose(1, 2).reshape(batch, length, -1))
        return out_BTD


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, model: Model, compute: Operations) -> None:
        super().__init__()
        self.compute = compute
        self.gate = nn.Linear(model.hidden, model.ffn, bias=False)
        self.up = nn.Linear(model.hidden, model.ffn, bias=False)
        self.down = nn.Linear(model.ffn, model.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return down(silu(gate(x)) * up(x))."""
        out_BTD: Tensor = self.down(self.compute.silu_times(self.gate(x_BTD), self.up(x_BTD)))
        return out_BTD


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, model: Model, recompute: ActivationCheckpointing, compute: Operations) -> None:
        super().__init__()
        self.recompute = recompute
        self.attention_norm = RMSNorm(model.hidden, model.norm_eps, compute)
        self.attention = Attention(model)
        self.ffn_norm = RMSNorm(model.hidden, model.norm_eps, compute)
        self.ffn = FeedForward(model, compute)

    def forward(self, x_BTD: Tensor, cos_B1TH: Tensor, sin_B1TH: Tensor, visible_B1TT: Tensor | None = None) -> Tensor:
        """Return the stream after this layer."""
        if self.recompute is ActivationCheckpointing.NONE or not torch.is_grad_enabled():
            return self._layer(x_BTD, cos_B1TH, sin_B1TH, visible_B1TT)
        # In here, and not around the block: ZeRO-3 gathers and lets go of weights in hooks around it. What is computed
        # again must not run them: it would leave the backward pass without weights.
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if self.recompute is ActivationCheckpointing.SELECTIVE:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _KEPT_OPERATIONS)
        again_BTD: Tensor = checkpoint(self._layer, x_BTD, cos_B1TH, sin_B1TH, visible_B1TT, **options)
        return again_BTD

    def _layer(self, x_BTD: Tensor, cos_B1TH: Tensor, sin_B1TH: Tensor, visible_B1TT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_B1TH, sin_B1TH, visible_B1TT)
        out_BTD: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return out_BTD


class Head(nn.Linear):
    """From hidden states to the vocabulary, and to the loss of each position."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.hidden, model.vocab_size, bias=False)

    def forward(self, x: Tensor, target_P: Tensor | None = None) -> Tensor:
        """Return the logits; with targets, x being [P, D], the NLL of each position instead (nats, fp32)."""
        if target_P is None:
            return super().forward(x)
        parts = []
        for start in range(0, len(x), _LOSS_CHUNK_POSITIONS):
            part = slice(start, start + _LOSS_CHUNK_POSITIONS)
            if len(x) > _LOSS_CHUNK_POSITIONS and torch.is_grad_enabled():
                # Recomputed in the backward pass: otherwise autograd would keep every chunk's logits after all.
                parts.append(checkpoint(self._nll, x[part], target_P[part], use_reentrant=False))
            else:
                parts.append(self._nll(x[part], target_P[part]))
        return torch.cat(parts)

    def _nll(self, x_PD: Tensor, target_P: Tensor) -> Tensor:
        return F.cross_entropy(super().forward(x_PD).float(), target_P, reduction="none")


class Decoder(nn.Module):
    """Token sequences in, negative log-likelihood per sequence out."""

    def __init__(
        self,
        model: Model,
        *,
        end_of_text: int | None = None,
        recompute: ActivationCheckpointing = ActivationCheckpointing.NONE,
        kernels: Kernels = Kernels.TORCH,
    ) -> None:
        """Leave the weights to `initialise`; with `end_of_text` a document attends to itself alone."""
        super().__init__()
        compute = operations(kernels)
        self.geometry = model
        self.end_of_text = end_of_text
        self.embedding = nn.Embedding(model.vocab_size, model.hidden)
        self.blocks = nn.ModuleList([Block(model, recompute, compute) for _ in range(model.layers)])
        self.norm = RMSNorm(model.hidden, model.norm_eps, compute)
        self.head = Head(model)

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Return the normed hidden states before the head."""
        if self.end_of_text is None:
            position_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
            visible_B1TT = None
        else:
            position_BT = documents.positions(tokens_BT, self.end_of_text)
            visible_B1TT = documents.visible(position_BT)
        cos_B1TH, sin_B1TH = self._angles(position_BT)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_B1TH, sin_B1TH, visible_B1TT)
        out_BTD: Tensor = self.norm(x_BTD)
        return out_BTD

    def forward(self, tokens_BS: Tensor, valid_BT: Tensor) -> Tensor:
        """Return the summed NLL (nats, fp32) of each sequence; S = T + 1, targets that are not valid add nothing."""
        x_BTD = self.hidden(tokens_BS[:, :-1])
        nll_BT: Tensor = self.head(x_BTD.flatten(0, 1), tokens_BS[:, 1:].flatten()).view_as(valid_BT)
        return (nll_BT * valid_BT).sum(dim=1)

    def _angles(self, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        head_dim = self.geometry.hidden // self.geometry.heads
        exponent_H = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_BT.device) / head_dim
        angle_BTH = position_BT.float().unsqueeze(2) * self.geometry.rope_theta**-exponent_H
        angle_B1TH = angle_BTH.repeat(1, 1, 2).unsqueeze(1)
        return angle_B1TH.cos(), angle_B1TH.sin()
