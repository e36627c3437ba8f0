"""The product's engine: DeepSpeed with ZeRO stage 0, 1, 2 or 3.

On GPUs stages 1 to 3 keep weights in bf16 and masters, moments and accumulated gradients in fp32; stage 0 keeps
everything in fp32 and computes in bf16 by autocast (DeepSpeed has no bf16 stage 0 with fp32 accumulation). On CPUs
everything is fp32. Defaults of DeepSpeed that touch the arithmetic have changed between releases, so each is set here.
"""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from skywork_trainer.config import Offload, RunConfig
from skywork_trainer.engine import Fragment, Reader, decay_groups
from skywork_trainer.engine.deepspeed_fragments import PartitionedState, forbid_compilation
from skywork_trainer.engine.deepspeed_zero3 import ShardedState, gather_by_block, partition
from skywork_trainer.engine.reference import ReplicatedState
from skywork_trainer.engine.timing import ForwardTimer
from skywork_trainer.model import Decoder


def deepspeed_config(
    config: RunConfig, *, micro_batches: int, bf16: bool, folder: Path | None = None
) -> dict[str, object]:
    """Return the engine's configuration, every value that matters set and none left to a default.

    `folder` lies on the node's disk, for what engine.offload Nvme puts there.
    """
    stage = config.engine.zero_stage
    return {
        "train_micro_batch_size_per_gpu": config.engine.micro_batch_sequences,
        "gradient_accumulation_steps": micro_batches,
        # The loss is divided by the global token count before: sums make it independent of the world size. Stage 3
        # knows no sums; there the loss is multiplied by the world size, which the mean then takes back.
        "gradient_allreduce_op": "mean" if stage == 3 else "sum",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_clipping": config.optimizer.gradient_clipping,
        # Gradients that are not finite must not reach the weights: with this DeepSpeed drops the step.
        "bf16": {"enabled": bf16 and stage > 0, "check_grad_overflow": True},
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
            **(_stage_3(config) if stage == 3 else {}),
            **_offload(config.engine.offload, folder),
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 10**12,
    }


def _stage_3(config: RunConfig) -> dict[str, object]:
    hidden = config.model.hidden
    return {
        # Norms are kept whole everywhere: to gather each alone would cost more than they hold.
        "stage3_param_persistence_threshold": 2 * hidden,
        "stage3_model_persistence_threshold": 10**12,
        # Weights gathered ahead of their use, and kept until then: about two blocks of the paper's 13B.
        "stage3_prefetch_bucket_size": 16 * hidden * hidden,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_module_granularity_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": False,
        "sub_group_size": 1_000_000_000,
        # Autograd would else hold every gathered matrix from its forward to its backward pass.
        "memory_efficient_linear": True,
    }


def _offload(offload: Offload, folder: Path | None) -> dict[str, object]:
    """Return where state goes; pinned, for the copies go beside the computation. Untested: it takes a GPU to matter."""
    if offload is Offload.NONE:
        return {}
    optimizer = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload is Offload.CPU:
        return {"offload_optimizer": optimizer}
    parameters = {"device": "nvme", "nvme_path": str(folder), "pin_memory": torch.cuda.is_available()}
    return {"offload_optimizer": optimizer, "offload_param": parameters}


def _adamw(module: Decoder, config: RunConfig) -> torch.optim.Optimizer:
    optimizer = config.optimizer
    groups = decay_groups(module, optimizer.weight_decay)
    betas = (optimizer.beta1, optimizer.beta2)
    if config.engine.offload is Offload.NONE:
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=optimizer.epsilon)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(
        groups, lr=0.0, betas=betas, eps=optimizer.epsilon, adamw_mode=True, fp32_optimizer_states=True
    )
    return offloaded


class DeepSpeedEngine:
    """One rank's engine; needs the default process group.

    A module on the meta device is made on `device` with weights of zero, in stage 3 as no more than this rank's part of
    them: `load_fragments` has to follow. Any other module stays on its device, with its weights.
    """

    def __init__(
        self,
        module: Decoder,
        config: RunConfig,
        *,
        micro_batches: int,
        bf16: bool | None = None,
        device: torch.device | None = None,
        folder: Path | None = None,
    ) -> None:
        on_meta = next(module.parameters()).is_meta
        device = device or torch.device("cpu") if on_meta else next(module.parameters()).device
        half = device.type == "cuda" if bf16 is None else bf16
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        forbid_compilation()
        stage = config.engine.zero_stage
        settings = deepspeed_config(config, micro_batches=micro_batches, bf16=half, folder=folder)
        if stage == 3:
            gather_by_block(module)
        if on_meta:
            dtype = torch.bfloat16 if half and stage else torch.float32
            if stage == 3:
                partition(module, settings, device=device, dtype=dtype)
            else:
                module.to(dtype).to_empty(device=device)
        adamw = _adamw(module, config)
        self._engine: Any = deepspeed.initialize(
            model=module,
            optimizer=adamw,
            config=settings,
            dist_init_required=False,
        )[0]
        self.module = module
        self._autocast = half and stage == 0
        self._device = device.type
        self._loss_scale = float(dist.get_world_size()) if stage == 3 else 1.0
        self._replicated = ReplicatedState(module, adamw) if stage == 0 else None
        state = ShardedState if stage == 3 else PartitionedState
        self._partitioned = state(module, self._engine.optimizer) if stage else None
        self._replicated_step = 0
        self._forward, self._gathers = ForwardTimer(device), stage == 3

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Add one micro-batch's gradient; ZeRO-2 and 3 reduce it at once, the others at the last one."""
        context: AbstractContextManager[object] = (
            torch.autocast(self._device, torch.bfloat16) if self._autocast else nullcontext()
        )
        with context, self._forward():
            nll: Tensor = self._engine(tokens_BS, valid_BT).sum()
        self._engine.backward(nll * (self._loss_scale / global_tokens), scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only counts the micro-batch
        return nll.detach()

    def step(self, learning_rate: float) -> float:
        """Clip and update."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._replicated is None:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        # DeepSpeed keeps no norm at stage 0; the last micro-batch has left the summed gradients in place.
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        self._end_replicated_step(update=math.isfinite(norm))
        return norm

    def forward_seconds(self) -> float | None:
        """Return what forward passes took since the last call; None in stage 3, where they gather weights."""
        seconds = self._forward.take()
        return None if self._gathers else seconds

    def skip(self) -> None:
        """Let DeepSpeed itself refuse the update, as it refuses gradients that are not finite."""
        if self._partitioned is not None:
            self._partitioned.spoil_gradients()
            self._engine.step()
        else:
            self._end_replicated_step(update=False)

    def _end_replicated_step(self, *, update: bool) -> None:
        if update:
            self._engine.step()
            self._replicated_step += 1
            return
        self._engine.set_gradient_accumulation_boundary(False)
        self._engine.step()  # only counts the micro-batch
        self._engine.set_gradient_accumulation_boundary(None)
        self._engine.zero_grad()

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
