"""Train for a while with everything that watches training timed: `python -m dev.bench.monitor_once STEPS`.

Prints one JSON object: seconds of a step, and seconds a step of the calls by which a worker reports, records, diagnoses
and looks for requests. The model and the batch are the demo's: steps of real runs take a hundred times as long, and
what is measured here does not grow with them.
"""

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from skywork_trainer import worker
from skywork_trainer.batch import micro_batches
from skywork_trainer.collectives import World
from skywork_trainer.config import PRESETS, Place, RunConfig
from skywork_trainer.domains import Domains
from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
from skywork_trainer.metrics import Reporter
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.monitor import Monitor
from skywork_trainer.requests import read_request
from skywork_trainer.storage import open_store
from skywork_trainer.train import Trainer
from skywork_trainer.warmup import SyntheticStream
from skywork_trainer.windows import TextSizes, Windows

_LENGTH, _SEQUENCES = 128, 24
_DOMAINS = ("zh", "en", "code", "papers", "social")


class Stopwatch:
    """Adds up what wrapped calls take, inner ones once."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._inside = False

    def __call__(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, timed."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, began, cpu = True, time.perf_counter(), time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self.cpu_seconds += time.thread_time() - cpu
                self._inside = False

        return timed


def main() -> None:
    """Train and print."""
    steps = int(sys.argv[1])
    watch = Stopwatch()
    for kind in (Reporter, Monitor):
        for name, call in list(vars(kind).items()):
            if callable(call) and not name.startswith("_"):
                setattr(kind, name, watch(call))
    with tempfile.TemporaryDirectory(prefix="skywork-bench-") as folder:
        print(json.dumps(_train(Path(folder), steps, watch)), flush=True)


def _train(folder: Path, steps: int, watch: Stopwatch) -> dict[str, float]:
    worker.preload()
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    config, state = _config(folder, steps), folder / "state"
    state.mkdir()
    place = Place(
        generation=1, rank=0, world_size=1, local_rank=0, local_world_size=1, master_address="127.0.0.1",
        master_port=1, state_dir=state, cache_dir=folder,
    )  # fmt: skip
    module = Decoder(config.model)
    initialise(module, 0)
    generator = np.random.default_rng(1)
    shape = (4, _LENGTH + 1)
    domains = [
        Windows(name, generator.integers(0, config.model.vocab_size, shape), np.ones((4, _LENGTH), dtype=np.bool_))
        for name in _DOMAINS
    ]
    trainer = Trainer(
        config,
        engine=DeepSpeedEngine(module, config, micro_batches=micro_batches(config, 1)),
        stream=SyntheticStream(config),
        domains=Domains(
            _DOMAINS,
            world=World(),
            opened=lambda: (domains, {}),
            sizes=lambda windows: TextSizes(characters=1, bytes=1),
        ),
        store=open_store(config.checkpoints.uri),
        world=World(),
        generation=1,
        reporter=Reporter(config, place),
        cache=folder / "cache",
        leave=lambda: False,
        asked=watch(lambda: read_request(state)),
    )
    began = time.thread_time()
    trainer.run()
    cpu_seconds = time.thread_time() - began
    progress = json.loads((state / "progress.json").read_text())
    # Beside training alone: validations, which a spec may ask for more or less often, are not counted as steps.
    return {
        "step_seconds": progress["spent"]["train"] / steps,
        "monitoring_seconds": watch.seconds / steps,
        "share": watch.seconds / progress["spent"]["train"],
        "cpu_share": watch.cpu_seconds / cpu_seconds,
        "steps": steps,
        "progress_bytes": len(json.dumps(progress)),
    }


def _config(folder: Path, steps: int) -> RunConfig:
    tokens, uri = _LENGTH * _SEQUENCES, folder.as_uri()
    return RunConfig.model_validate(
        {
            "run": "bench", "namespace": "bench", "incarnation": 1, "stage": "only", "tokenizer_uri": uri,
            "model": PRESETS["tiny"].model_dump(),
            "engine": {"zero_stage": 1, "micro_batch_sequences": 8},
            "sequence_length": _LENGTH, "global_batch_sequences": _SEQUENCES,
            "sources": [{"name": "main", "uri": uri}],
            "stages": [
                {"name": "only", "tokens": steps * tokens, "mixture": [{"source": "main"}],
                 "learning_rate": {"schedule": "Constant", "peak": 1e-4}}
            ],
            "validation": {"every_tokens": 50 * tokens, "windows": 4,
                           "domains": [{"name": name, "uri": uri} for name in _DOMAINS]},
            "checkpoints": {"uri": (folder / "store").as_uri(), "every_seconds": 10},
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
