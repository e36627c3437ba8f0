"""Real ranks for tests: processes forked from a warm server, gloo between them, synthetic tokens."""

import atexit
import functools
import multiprocessing as mp
import os
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skywork_trainer.config import (
    EXIT_DONE,
    Checkpoints,
    Engine,
    LearningRate,
    MixtureEntry,
    Model,
    Place,
    RunConfig,
    Schedule,
    Source,
    Stage,
    Validation,
)

REPOSITORY = Path(__file__).parents[3]
MODEL = Model(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=256, init_std=0.02)
BATCH, LENGTH = 6, 16
GONE = "file:///gone"
"""URI of a held-out domain that cannot be read."""
TOKENS_PER_STEP = BATCH * LENGTH


def run_config(folder: Path, *, steps: tuple[int, ...] = (8,), stage: str = "s0", **changes: Any) -> RunConfig:
    """Return a run of stages s0, s1, ... of so many steps each, saving below `folder`."""
    uri = (folder / "store").as_uri()
    rate = LearningRate(schedule=Schedule.COSINE, peak=1e-2, final=1e-3, warmup_tokens=2 * TOKENS_PER_STEP)
    stages = tuple(
        Stage(
            name=f"s{i}",
            tokens=count * TOKENS_PER_STEP,
            learning_rate=rate if not i else LearningRate(schedule=Schedule.CONSTANT),
            mixture=(MixtureEntry(source="main"),),
        )
        for i, count in enumerate(steps)
    )
    values: dict[str, Any] = {
        "run": "r",
        "namespace": "n",
        "incarnation": 1,
        "stage": stage,
        "model": MODEL,
        "tokenizer_uri": uri,
        "engine": Engine(zero_stage=1, micro_batch_sequences=2),
        "sequence_length": LENGTH,
        "global_batch_sequences": BATCH,
        "sources": (Source(name="main", uri=uri),),
        "stages": stages,
        "validation": Validation(every_tokens=1 << 40),
        "checkpoints": Checkpoints(uri=uri, every_seconds=1e9, keep_last=100),
    }
    return RunConfig(**(values | changes))


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def place(folder: Path, *, rank: int, size: int, port: int, generation: int) -> Place:
    """Return a rank's place on this machine."""
    return Place(
        generation=generation,
        rank=rank,
        world_size=size,
        local_rank=rank,
        local_world_size=size,
        master_address="127.0.0.1",
        master_port=port,
        state_dir=folder / f"state-{generation}",
        cache_dir=folder / f"cache-{rank}",
    )


_context = mp.get_context("forkserver")


@functools.cache
def _end_ranks_at_exit() -> None:
    """Have what a test that failed in the middle leaves training killed: this process would wait for it at its end."""
    # Not when this module is imported: multiprocessing's own handler, which waits, would come later and run first.
    atexit.register(lambda: [process.kill() for process in mp.active_children()])


def _enter(target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    # As the agent's children do: threads of the process group must not hold up the end.
    code = 1
    try:
        result = target(*arguments)
        code = result if isinstance(result, int) else 0
    finally:
        os._exit(code)


@dataclass
class Ranks:
    """Running ranks."""

    processes: list[Any]

    def kill(self, rank: int) -> None:
        """Kill one as the kernel would."""
        os.kill(self.processes[rank].pid, signal.SIGKILL)

    def terminate(self, rank: int) -> None:
        """Ask one to leave."""
        os.kill(self.processes[rank].pid, signal.SIGTERM)

    def codes(self) -> list[int]:
        """Wait for all; return the exit codes."""
        for process in self.processes:
            process.join(90)
            if process.exitcode is None:
                process.kill()
        return [process.exitcode for process in self.processes]


def start(target: Callable[..., object], size: int, *arguments: object, only: Iterable[int] | None = None) -> Ranks:
    """Start `target(rank, size, port, *arguments)` on all ranks, or on some of them."""
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # the fork server's own import of `warm` has nothing else to go by
    _context.set_forkserver_preload(["tests.unit.train.warm"])
    port = free_port()
    ranks = range(size) if only is None else only
    processes = [_context.Process(target=_enter, args=(target, (rank, size, port, *arguments))) for rank in ranks]
    for process in processes:
        process.start()
    _end_ranks_at_exit()
    return Ranks(processes)


def train(
    config: RunConfig, folder: Path, *, size: int, generation: int = 1, fault: "Fault | None" = None
) -> list[int]:
    """Train to the end on `size` ranks; return the exit codes."""
    return start(train_rank, size, config, folder, generation, fault).codes()


@dataclass(frozen=True)
class Fault:
    """Signal that a rank sends itself when it reads the first sequence of a step."""

    rank: int
    step: int
    signal: int
    commits: int = 0
    """Not before so many checkpoints are committed, at whatever step that is."""


def train_rank(
    rank: int, size: int, port: int, config: RunConfig, folder: Path, generation: int, fault: Fault | None
) -> int:
    """Run one rank over synthetic tokens, by the worker's own code but for the data."""
    import numpy as np
    from skywork_trainer import worker
    from skywork_trainer.checkpoint.manifest import committed
    from skywork_trainer.data import held_out, stream
    from skywork_trainer.storage import open_store
    from skywork_trainer.warmup import SyntheticStream
    from skywork_trainer.windows import TextSizes, Windows

    store = open_store(config.checkpoints.uri)

    class Stream(SyntheticStream):
        def __init__(self, config: RunConfig, cache_dir: Path) -> None:
            super().__init__(config)

        def read(self, sequence: int) -> Any:
            step = sequence // BATCH
            due = fault is not None and fault.rank == rank and (fault.step == step or fault.commits > 0)
            if fault and due and (not fault.commits or len(committed(store)) >= fault.commits):
                os.kill(os.getpid(), fault.signal)
            return super().read(sequence)

        def close(self) -> None:
            pass

    def windows(domain: Source) -> Windows:
        generator = np.random.default_rng(len(domain.name))
        tokens = generator.integers(0, 256, (config.validation.windows, LENGTH + 1))
        return Windows(domain.name, tokens, generator.random((config.validation.windows, LENGTH)) < 0.9)

    def opened(config: RunConfig, cache_dir: Path) -> tuple[list[Windows], dict[str, str]]:
        gone = {d.name: "SourceMissing: gone" for d in config.validation.domains if d.uri == GONE}
        return [windows(d) for d in config.validation.domains if d.uri != GONE], gone

    stream.SequenceStream = Stream  # type: ignore[assignment,misc]
    held_out.open_held_out = opened
    held_out.Sizer = lambda config: lambda windows: TextSizes(characters=90, bytes=100, reference_tokens=50)  # type: ignore[assignment,misc]
    return worker.run(config, place(folder, rank=rank, size=size, port=port, generation=generation))


def done(size: int) -> list[int]:
    """Return the exit codes of a world that finished its stage."""
    return [EXIT_DONE] * size
