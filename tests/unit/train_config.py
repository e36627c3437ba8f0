"""A small, complete configuration on local files."""

from pathlib import Path
from typing import Any

from skywork_trainer.config import (
    Checkpoints,
    LearningRate,
    MixtureEntry,
    Model,
    RunConfig,
    Schedule,
    Source,
    Stage,
    Validation,
)


def run_config(folder: Path, **changes: Any) -> RunConfig:
    """One stage, one source, below `folder`."""
    fields: dict[str, Any] = {
        "run": "test",
        "namespace": "default",
        "incarnation": 1,
        "stage": "general",
        "model": Model(layers=1, hidden=16, heads=2, kv_heads=2, ffn=32, vocab_size=256),
        "tokenizer_uri": f"file://{folder}/tokenizer",
        "sequence_length": 16,
        "global_batch_sequences": 4,
        "sources": (Source(name="main", uri=f"file://{folder}/main"),),
        "stages": (
            Stage(
                name="general",
                tokens=640,
                learning_rate=LearningRate(schedule=Schedule.CONSTANT, peak=1e-3),
                mixture=(MixtureEntry(source="main"),),
            ),
        ),
        "validation": Validation(every_tokens=320),
        "checkpoints": Checkpoints(uri=f"file://{folder}/checkpoints"),
    }
    return RunConfig(**(fields | changes))
