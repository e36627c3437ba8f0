"""One contender trains one model for a few steps: `python -m dev.bench.train_once '{…}'`, one JSON object of numbers.

All contenders train the same module on the same tokens with the same micro-batches, so that what differs is the engine:

    ours     the product's DeepSpeed engine
    torch    bf16 weights, fp32 masters and accumulation, AdamW, nothing else
    fsdp2    fully_shard by block with mixed precision, as torchtitan does it
"""

import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from skywork_trainer.checkpoint.saver import Saver
from skywork_trainer.collectives import World
from skywork_trainer.config import ActivationCheckpointing, Kernels, Model, Place, RunConfig
from skywork_trainer.engine import decay_groups
from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
from skywork_trainer.flops import flops_per_token, peak_flops_per_second
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.storage import open_store
from skywork_trainer.worker import has_gpu, process_group
from torch import Tensor

from dev.bench.checkpoint_rank import snapshot

_WARM_STEPS = 3


class Contender(Protocol):
    """What takes micro-batches and makes steps of them."""

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Add one micro-batch's gradient; return its summed NLL."""

    def step(self, learning_rate: float) -> float:
        """Clip and update; return the gradient's norm."""


class BareTorch:
    """What one would write for one device without any library: no buckets, no shards, no hooks."""

    def __init__(self, module: Decoder, *, half: bool) -> None:
        self._masters = [parameter.detach().float().clone() for parameter in module.parameters()]
        self._module = module.bfloat16() if half else module
        self._weights: list[Tensor] = list(self._module.parameters())
        for master in self._masters:
            master.grad = torch.zeros_like(master)
        fused = self._masters[0].is_cuda
        self._adamw = torch.optim.AdamW(
            self._masters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=fused, foreach=not fused
        )

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Add up in fp32, as the product does."""
        nll: Tensor = self._module(tokens_BS, valid_BT).sum()
        (nll / global_tokens).backward()  # type: ignore[no-untyped-call]
        fresh = [weight.grad.float() for weight in self._weights if weight.grad is not None]
        torch._foreach_add_([master.grad for master in self._masters if master.grad is not None], fresh)
        for weight in self._weights:
            weight.grad = None
        return nll.detach()

    def step(self, learning_rate: float) -> float:
        """Update the masters, then round them into the weights."""
        norm = torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._masters)
        return float(norm)


class Fsdp2:
    """fully_shard around every block and the whole, weights gathered in bf16, gradients reduced in fp32."""

    def __init__(self, module: Decoder, *, half: bool) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
        )
        for block in module.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(module, mp_policy=policy)
        self._module = module
        groups = decay_groups(module, 0.1)
        fused = next(module.parameters()).is_cuda
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=fused, foreach=not fused)

    def forward_backward(self, tokens_BS: Tensor, valid_BT: Tensor, *, global_tokens: int, last: bool) -> Tensor:
        """Reduce with the last micro-batch only."""
        self._module.set_requires_gradient_sync(last)  # type: ignore[operator]
        nll: Tensor = self._module(tokens_BS, valid_BT).sum()
        (nll / global_tokens).backward()  # type: ignore[no-untyped-call]
        return nll.detach()

    def step(self, learning_rate: float) -> float:
        """Clip and update."""
        norm = torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad()
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def main() -> None:
    """Train, and print what was measured."""
    asked = json.loads(sys.argv[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="skywork-bench-") as folder:
        place = Place(
            generation=1, rank=0, world_size=1, local_rank=0, local_world_size=1, master_address="127.0.0.1",
            master_port=port, state_dir=Path(folder, "state"), cache_dir=Path(folder, "cache"),
        )  # fmt: skip
        with process_group(place) as world:
            print(json.dumps(_measure(asked, Path(folder), world)), flush=True)


def _measure(asked: dict[str, Any], folder: Path, world: World) -> dict[str, float]:
    config = _config(asked, folder)
    module, cuda = _module(asked, config, world), world.device.type == "cuda"
    contender = _contender(asked["contender"], module, config, half=cuda)
    generator = torch.Generator().manual_seed(7)
    shape = (asked["micro_batches"], asked["micro_batch"], config.sequence_length + 1)
    tokens_NBS = torch.randint(0, config.model.vocab_size, shape, generator=generator).to(world.device)
    valid_BT = torch.ones(asked["micro_batch"], config.sequence_length, device=world.device)
    step_tokens = asked["micro_batches"] * asked["micro_batch"] * config.sequence_length
    losses, rates = [], []
    for step in range(_WARM_STEPS + asked["steps"]):
        _wait(cuda)
        began, nll = time.monotonic(), torch.zeros((), device=world.device)
        for number, tokens_BS in enumerate(tokens_NBS):
            last = number == len(tokens_NBS) - 1
            nll += contender.forward_backward(tokens_BS, valid_BT, global_tokens=step_tokens, last=last)
        contender.step(1e-4)
        _wait(cuda)
        losses.append(float(nll) / step_tokens)
        if step >= _WARM_STEPS:
            rates.append(step_tokens / (time.monotonic() - began))
    told = {
        "tokens_per_second": statistics.median(rates),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "peak_gib": _peak_bytes(cuda) / 2**30,
    }
    peak = peak_flops_per_second(torch.cuda.get_device_name()) if cuda else None
    if peak is not None:
        told["mfu"] = told["tokens_per_second"] * flops_per_token(config.model, config.sequence_length) / peak
    if isinstance(contender, DeepSpeedEngine):
        told |= _save(contender, config, world, folder)
    return told


def _config(asked: dict[str, Any], folder: Path) -> RunConfig:
    uri = (folder / "store").as_uri()
    sequences = asked["micro_batch"] * asked["micro_batches"]
    engine = {name: asked[name] for name in ("activation_checkpointing", "compile", "kernels") if name in asked}
    return RunConfig.model_validate(
        {
            "run": "bench", "namespace": "bench", "incarnation": 1, "stage": "only", "model": asked["model"],
            "tokenizer_uri": uri,
            "engine": {"zero_stage": asked["zero_stage"], "micro_batch_sequences": asked["micro_batch"]} | engine,
            "sequence_length": asked["sequence_length"], "global_batch_sequences": sequences,
            "sources": [{"name": "main", "uri": uri}],
            "stages": [{
                "name": "only", "tokens": 1 << 40, "learning_rate": {"schedule": "Constant", "peak": 1e-4},
                "mixture": [{"source": "main"}],
            }],
            "validation": {"every_tokens": 1 << 60}, "checkpoints": {"uri": uri},
        }
    )  # fmt: skip


def _module(asked: dict[str, Any], config: RunConfig, world: World) -> Decoder:
    with torch.device(world.device):
        module = Decoder(
            Model.model_validate(asked["model"]),
            recompute=ActivationCheckpointing(config.engine.activation_checkpointing),
            kernels=Kernels(config.engine.kernels),
        )
    initialise(module, 0)
    if config.engine.compile:
        for block in module.blocks:
            block.compile()
    return module


def _contender(name: str, module: Decoder, config: RunConfig, *, half: bool) -> Contender:
    if name == "torch":
        return BareTorch(module, half=half)
    if name == "fsdp2":
        return Fsdp2(module, half=half)
    count = config.global_batch_sequences // config.engine.micro_batch_sequences
    return DeepSpeedEngine(module, config, micro_batches=count, bf16=half)


def _save(engine: DeepSpeedEngine, config: RunConfig, world: World, folder: Path) -> dict[str, float]:
    """How long two saves hold training up; the first one touches the pages of its buffers."""
    saver = Saver(open_store(config.checkpoints.uri), config, world=world, generation=1, local=folder / "local")
    saver.prepare(engine.fragments())
    stalls = []
    for turn in range(2):
        stalls.append(saver.begin(snapshot(engine, turn)))
        saver.finish()
    held = sum(array.nbytes for fragment in engine.fragments() for array in fragment.arrays())
    return {"save_stall_seconds": stalls[-1], "save_gigabytes": held / 1e9}


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _peak_bytes(cuda: bool) -> int:
    return torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if has_gpu() else "cpu")
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of the process group and of DeepSpeed may still be there
