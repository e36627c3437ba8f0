"""One rank of a world that saves or loads, ours and DeepSpeed's way: `python -m dev.bench.checkpoint_rank`.

    save FOLDER RANK SIZE PORT      train two steps; save in turns with a bare copy and with engine.save_checkpoint
    load FOLDER RANK SIZE PORT      fill a fresh engine from our newest checkpoint
    peer FOLDER RANK SIZE PORT      fill a fresh engine from DeepSpeed's universal checkpoint

Rank 0 prints one JSON object of lists of seconds.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from skywork_trainer.batch import micro_batches
from skywork_trainer.checkpoint.manifest import Counters
from skywork_trainer.checkpoint.restore import Candidates
from skywork_trainer.checkpoint.saver import DataIdentity, Saver, Snapshot
from skywork_trainer.collectives import World
from skywork_trainer.config import Model, Place, RunConfig
from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine, deepspeed_config
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.storage import Store, open_store
from skywork_trainer.worker import process_group

MODEL = Model(layers=8, hidden=512, heads=8, kv_heads=8, ffn=1408, vocab_size=32768)
_LENGTH, _BATCH = 64, 6
_REPEATS = 4


def run_config(folder: Path) -> RunConfig:
    """Return a run of the benchmark's model, saving below `folder`."""
    uri = (folder / "store").as_uri()
    return RunConfig.model_validate(
        {
            "run": "bench", "namespace": "bench", "incarnation": 1, "stage": "only", "model": MODEL.model_dump(),
            "tokenizer_uri": uri, "engine": {"zero_stage": 1, "micro_batch_sequences": 1},
            "sequence_length": _LENGTH, "global_batch_sequences": _BATCH, "sources": [{"name": "main", "uri": uri}],
            "stages": [{
                "name": "only", "tokens": 1 << 20, "learning_rate": {"schedule": "Constant", "peak": 1e-3},
                "mixture": [{"source": "main"}],
            }],
            "validation": {"every_tokens": 1 << 60}, "checkpoints": {"uri": uri, "keep_last": 1},
        }
    )  # fmt: skip


def main() -> None:
    """Do one of the three."""
    what, folder, rank, size, port = sys.argv[1], Path(sys.argv[2]), *(int(word) for word in sys.argv[3:])
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    place = Place(
        generation=1, rank=rank, world_size=size, local_rank=rank, local_world_size=size, master_address="127.0.0.1",
        master_port=port, state_dir=folder / "state", cache_dir=folder / f"cache-{rank}",
    )  # fmt: skip
    with process_group(place) as world:
        told = {"save": _save, "load": _load, "peer": _peer}[what](run_config(folder), folder, world)
        if rank == 0:
            print(json.dumps(told), flush=True)


def _engine(config: RunConfig, world: World) -> DeepSpeedEngine:
    module = Decoder(config.model)
    initialise(module, 0)
    return DeepSpeedEngine(module, config, micro_batches=micro_batches(config, world.size), bf16=True)


def _slowest(world: World, seconds: float) -> float:
    return max(float(text) for text in world.gather_bytes(repr(seconds).encode()))


def _save(config: RunConfig, folder: Path, world: World) -> dict[str, Any]:
    engine, count = _engine(config, world), micro_batches(config, world.size)
    tokens_BS = torch.randint(0, MODEL.vocab_size, (1, _LENGTH + 1))
    for _ in range(2):
        for index in range(count):
            engine.forward_backward(tokens_BS, torch.ones(1, _LENGTH), global_tokens=_LENGTH, last=index == count - 1)
        engine.step(1e-3)
    arrays = [array for fragment in engine.fragments() for array in fragment.arrays()]
    buffers = [array.clone() for array in arrays]
    saver = Saver(open_store(config.checkpoints.uri), config, world=world, generation=1, local=folder / "local")
    saver.prepare(engine.fragments())
    told: dict[str, Any] = {name: [] for name in ("stall", "whole", "copy", "peer")}
    told["megabytes"] = sum(array.nbytes for array in arrays) / 1e6
    for turn in range(_REPEATS + 1):
        dist.barrier()
        began = time.monotonic()
        stall = saver.begin(snapshot(engine, turn))
        saver.finish()
        whole = time.monotonic() - began
        dist.barrier()
        began = time.monotonic()
        for buffer, array in zip(buffers, arrays, strict=True):
            buffer.copy_(array)
        copy = time.monotonic() - began
        dist.barrier()
        began = time.monotonic()
        engine._engine.save_checkpoint(str(folder / "deepspeed"), tag="newest")
        peer = time.monotonic() - began
        slowest = [_slowest(world, seconds) for seconds in (stall, whole, copy, peer)]
        if turn:  # the first one starts processes and touches pages
            for name, seconds in zip(("stall", "whole", "copy", "peer"), slowest, strict=True):
                told[name].append(seconds)
    return told


def snapshot(engine: DeepSpeedEngine, step: int) -> Snapshot:
    """Return what a trainer would save now, all but the fragments made up."""
    return Snapshot(
        step=step + 2, stage="only", optimizer_step=2, fragments=engine.fragments(),
        data=DataIdentity(tokenizer_sha256="0" * 64, fingerprints={}, past_hash=""), counters=Counters(), parent="",
        parent_step=0, consumed=(), losses=[0.0] * (step + 2),
    )  # fmt: skip


def _load(config: RunConfig, folder: Path, world: World) -> dict[str, Any]:
    engine = _engine(config, world)
    dist.barrier()
    began = time.monotonic()
    store = open_store(config.checkpoints.uri)
    read_bytes = _count_reads(store)
    candidates = Candidates(store, world)
    manifest = candidates.next()
    assert manifest is not None and candidates.load(manifest, engine)
    seconds = _slowest(world, time.monotonic() - began)
    held_bytes = sum(array.nbytes for fragment in engine.fragments() for array in fragment.arrays())
    return {"seconds": [seconds], "read_share": [sum(read_bytes) / held_bytes]}


def _count_reads(store: Store) -> list[int]:
    """Have the store note the length of every range it reads."""
    lengths: list[int] = []
    read = store.get_range

    def counted(key: str, start: int, length: int) -> bytes:
        found = read(key, start, length)
        lengths.append(len(found))
        return found

    store.get_range = counted  # type: ignore[method-assign]
    return lengths


def _peer(config: RunConfig, folder: Path, world: World) -> dict[str, Any]:
    import deepspeed

    module = Decoder(config.model)
    settings = deepspeed_config(config, micro_batches=micro_batches(config, world.size), bf16=True)
    engine = deepspeed.initialize(
        model=module, optimizer=torch.optim.AdamW(module.parameters(), lr=0.0),
        config=settings | {"checkpoint": {"load_universal": True}}, dist_init_required=False,
    )[0]  # fmt: skip
    dist.barrier()
    began = time.monotonic()
    path, _ = engine.load_checkpoint(str(folder / "deepspeed"), tag="universal")
    assert path is not None
    return {"seconds": [_slowest(world, time.monotonic() - began)]}


if __name__ == "__main__":
    main()
    os._exit(0)  # threads of the process group and of DeepSpeed may still be there
