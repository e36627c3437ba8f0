"""One worker of the peer: torchrun starts it, and it trains for ever, writing a line for its start and for its steps.

`trainer` is our own worker: the same engine, data, checkpoints and storage, so that only who forms the worlds and
starts the processes differs. `bare` is our decoder alone, under DDP on random tokens, restoring nothing.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from skywork_trainer.config import Model, Place, Progress, load
from skywork_trainer.model import Decoder, initialise

_JOIN = timedelta(seconds=120)


def main() -> None:
    """Train until somebody ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("trainer", "bare"))
    parser.add_argument("--config", help="of the trainer")
    parser.add_argument("--model", help="of the bare decoder")
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    options = parser.parse_args()
    world = int(os.environ["WORLD_SIZE"])
    with options.events.open("a", buffering=1) as events:

        def say(event: str, at: float) -> None:
            events.write(json.dumps({"event": event, "time": at, "pid": os.getpid(), "world": world}) + "\n")

        say("start", time.time())
        if options.what == "trainer":
            _trainer(options.config, options.folder, say)
        _bare(Model.model_validate_json(options.model), (options.sequences, options.sequence_length), say)


def _trainer(config: str, folder: Path, say: Callable[[str, float], None]) -> NoReturn:
    from skywork_trainer import worker

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, size, rank == 0, _JOIN, wait_for_workers=False)  # type: ignore[attr-defined]
    if rank == 0:
        # Torchrun numbers no worlds: the clock stands in for what our operator counts.
        store.set("generation", str(int(time.time())))
    generation = int(store.get("generation"))
    place = Place(
        generation=generation, rank=rank, world_size=size, local_rank=0, local_world_size=1, master_address=address,
        master_port=port + 1, state_dir=folder / str(generation), cache_dir=folder / "cache",
    )  # fmt: skip
    if rank == 0:
        threading.Thread(target=_follow, args=(place.state_dir / "progress.json", say), daemon=True).start()
    # As our agent's forks end: threads that read ahead would hold the process, and torchrun wait 30 s to kill it.
    os._exit(worker.run(load(config), place))


def _follow(path: Path, say: Callable[[str, float], None]) -> None:
    """Tell of the first step of this process."""
    while True:
        if path.exists() and (at := Progress.model_validate_json(path.read_bytes()).first_step_time):
            say("step", at)
            return
        time.sleep(0.02)


def _bare(geometry: Model, shape: tuple[int, int], say: Callable[[str, float], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    module = Decoder(geometry)
    initialise(module, seed=1)
    wrapped = torch.nn.parallel.DistributedDataParallel(module)
    adamw = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    while True:
        tokens = torch.randint(geometry.vocab_size, (shape[0], shape[1] + 1))
        adamw.zero_grad()
        (wrapped(tokens, torch.ones(shape)).sum() / (shape[0] * shape[1])).backward()
        adamw.step()
        say("step", time.time())


if __name__ == "__main__":
    main()
