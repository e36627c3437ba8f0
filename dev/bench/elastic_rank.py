"""One worker of the peer: torchrun starts it, it joins, trains our decoder under DDP on random tokens, for ever.

It restores nothing: what a restart costs it is the joining and the first step alone.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from skywork_trainer.config import Model
from skywork_trainer.model import Decoder, initialise


def main() -> None:
    """Train until somebody ends the process; one line of JSON for the start and for every step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--sequence-length", type=int, required=True)
    options = parser.parse_args()
    with options.events.open("a", buffering=1) as events:

        def say(event: str) -> None:
            world = dist.get_world_size() if dist.is_initialized() else 0
            events.write(json.dumps({"event": event, "time": time.time(), "pid": os.getpid(), "world": world}) + "\n")

        say("start")
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        geometry = Model.model_validate_json(options.model)
        module = Decoder(geometry)
        initialise(module, seed=1)
        wrapped = torch.nn.parallel.DistributedDataParallel(module)
        adamw = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
        shape = (options.sequences, options.sequence_length)
        while True:
            tokens = torch.randint(geometry.vocab_size, (shape[0], shape[1] + 1))
            adamw.zero_grad()
            (wrapped(tokens, torch.ones(shape)).sum() / (shape[0] * shape[1])).backward()
            adamw.step()
            say("step")


if __name__ == "__main__":
    main()
