"""A few steps of a tiny run on synthetic tokens, in a child that then ends: shows what a first step imports lazily."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from skywork_trainer.batch import micro_batches
from skywork_trainer.collectives import World
from skywork_trainer.config import (
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
from skywork_trainer.domains import Domains
from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
from skywork_trainer.metrics import Reporter
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.storage import open_store
from skywork_trainer.traffic import Traffic
from skywork_trainer.train import Trainer


class SyntheticStream:
    """Tokens computed from the sequence number: stands in for data where only the path through the code matters."""

    tokenizer_sha256 = "synthetic"
    end_of_text = 0
    substituted: Mapping[int, int] = MappingProxyType({})

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    @property
    def fingerprints(self) -> dict[str, str]:
        """One identity per source."""
        return {source.name: "synthetic" for source in self._config.sources}

    def read(self, sequence: int) -> npt.NDArray[np.int64]:
        """Return a sequence that depends on its number only."""
        generator = np.random.default_rng(sequence)
        return generator.integers(0, self._config.model.vocab_size, self._config.sequence_length + 1)

    def drawn(self, sequence: int) -> dict[str, int]:
        """Return everything as drawn from the first source."""
        start = self._config.stage_steps(self._config.stage_index).start * self._config.global_batch_sequences
        return {self._config.sources[0].name: max(sequence - start, 0)}

    def past_hash(self, sequence: int) -> str:
        """Return a constant."""
        return "synthetic"

    def epochs(self, sequence: int) -> dict[str, float]:
        """Return nothing: the stream has no end."""
        return {}

    def warnings(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def traffic(self) -> Traffic:
        """Return nothing."""
        return Traffic()

    def advance(self, step: int, sequences_of: Callable[[int], Sequence[int]]) -> None:
        """Do nothing."""


def train_a_little() -> None:
    """Train, save and restore a model of a few thousand parameters in a group of one."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    on_gpu = os.environ.get("DS_ACCELERATOR") == "cuda"
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as folder:
        for generation in (1, 2):
            config = _tiny(folder, steps=2 * generation)
            module = Decoder(config.model)
            initialise(module, config.seed)
            place = Place(
                generation=generation,
                rank=0,
                world_size=1,
                local_rank=0,
                local_world_size=1,
                master_address="127.0.0.1",
                master_port=1,
                state_dir=Path(folder),
                cache_dir=Path(folder),
            )
            Trainer(
                config,
                engine=DeepSpeedEngine(module.to(device), config, micro_batches=micro_batches(config, 1)),
                stream=SyntheticStream(config),
                domains=Domains((), world=World(0, 1, device)),
                store=open_store(config.checkpoints.uri),
                world=World(0, 1, device),
                generation=generation,
                reporter=Reporter(config, place),
                cache=Path(folder) / "cache",
                leave=lambda: False,
            ).run()


def _tiny(folder: str, *, steps: int) -> RunConfig:
    uri = f"file://{folder}"
    rate = LearningRate(schedule=Schedule.COSINE, peak=1e-3, final=1e-4)
    return RunConfig(
        run="warmup",
        namespace="none",
        incarnation=0,
        stage="only",
        model=Model(layers=1, hidden=16, heads=2, kv_heads=1, ffn=16, vocab_size=256),
        tokenizer_uri=uri,
        engine=Engine(zero_stage=1, micro_batch_sequences=1),
        sequence_length=8,
        global_batch_sequences=2,
        sources=(Source(name="only", uri=uri),),
        stages=(Stage(name="only", tokens=16 * steps, learning_rate=rate, mixture=(MixtureEntry(source="only"),)),),
        validation=Validation(every_tokens=1 << 40),
        checkpoints=Checkpoints(uri=uri),
    )
