"""The product's engine: DeepSpeed with ZeRO stage 0, 1 or 2.

On GPUs stages 1 and 2 keep weights in bf16 and masters, moments and accumulated gradients in fp32; stage 0 keeps
everything in fp32 and computes in bf16 by autocast (DeepSpeed has no bf16 stage 0 with fp32 accumulation). On CPUs
everything is fp32. Defaults of DeepSpeed that touch the arithmetic have changed between releases, so each is set here.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Fragment, Reader, decay_groups
from skywork_trainer.engine.deepspeed_fragments import PartitionedState, forbid_compilation
from skywork_trainer.engine.reference import ReplicatedState
from skywork_trainer.model import Decoder


def deepspeed_config(config: RunConfig, *, micro_batches: int, bf16: bool) -> dict[str, object]:
    """Return the engine's configuration, every value that matters set and none left to a default."""
    stage = config.engine.zero_stage
    return {
        "train_micro_batch_size_per_gpu": config.engine.micro_batch_sequences,
        "gradient_accumulation_steps": micro_batches,
        # The loss is divided by the global token count before: sums make it independent of the world size.
        "gradient_allreduce_op": "sum",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "bf16": {"enabled": bf16 and stage > 0},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": 100_000_000,
            "allgather_partitions": True,
            "allgather_bucket_size": 100_000_000,
            "round_robin_gradients": False,
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 10**12,
    }


class DeepSpeedEngine:
    """One rank's engine; needs the default process group and takes its device from the model."""

    def __init__(self, module: Decoder, config: RunConfig, *, micro_batches: int, bf16: bool | None = None) -> None:
        device = next(module.parameters()).device
        half = device.type == "cuda" if bf16 is None else bf16
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        forbid_compilation()
        optimizer = config.optimizer
        adamw = torch.optim.AdamW(
            decay_groups(module, optimizer.weight_decay),
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
        )
        self._engine: Any = deepspeed.initialize(
            model=module,
            optimizer=adamw,
            config=deepspeed_config(config, micro_batches=micro_batches, bf16=half),
            dist_init_required=False,
        )[0]
        self.module = module
        self._autocast = half and config.engine.zero_stage == 0
        self._device = device.type
        self._replicated = ReplicatedState(module, adamw) if config.engine.zero_stage == 0 else None
        self._partitioned = PartitionedState(module, self._engine.optimizer) if config.engine.zero_stage else None
        self._replicated_step = 0

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Add one micro-batch's gradient; ZeRO-2 reduces it at once, the others at the last one."""
        context: AbstractContextManager[object] = (
            torch.autocast(self._device, torch.bfloat16) if self._autocast else nullcontext()
        )
        with context:
            nll: Tensor = self._engine(tokens_BS, valid_BT).sum()
        self._engine.backward(nll / global_tokens, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only counts the micro-batch
        return nll.detach()

    def step(self, learning_rate: float) -> float:
        """Clip and update."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self._replicated is not None:
            # DeepSpeed keeps no norm at stage 0; the last micro-batch has left the summed gradients in place.
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self._engine.step()
        self._replicated_step += 1
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def fragments(self) -> list[Fragment]:
        """Return this rank's share."""
        if self._replicated is not None:
            return self._replicated.fragments(rank=dist.get_rank(), world=dist.get_world_size())
        assert self._partitioned is not None
        return self._partitioned.fragments()

    def load_fragments(self, read: Reader, *, optimizer_step: int) -> None:
        """Fill all state this rank holds."""
        if self._replicated is not None:
            self._replicated.load(read, optimizer_step=optimizer_step)
        elif self._partitioned is not None:
            self._partitioned.load(read, optimizer_step=optimizer_step)
        self._replicated_step = optimizer_step

    @property
    def optimizer_step(self) -> int:
        """Updates applied so far."""
        return self._partitioned.optimizer_step if self._partitioned is not None else self._replicated_step
