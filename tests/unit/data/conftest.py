import json
from collections.abc import Callable
from pathlib import Path

import pytest
from skywork_trainer.config import Preparation, RunConfig
from skywork_trainer.prepare import shardwriter
from skywork_trainer.prepare.pipeline import prepare as prepare_source
from skywork_trainer.tokenizer import LoadedTokenizer, train_tokenizer

TEXTS = [
    f"第{n}篇：天地玄黄，宇宙洪荒。Document {n} says: " + f"{n * n} lines of text. " * (3 + n % 7) for n in range(120)
]
Prepare = Callable[..., str]
Configure = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def tokenizer() -> LoadedTokenizer:
    return train_tokenizer(iter(TEXTS), 400)


@pytest.fixture
def tokenizer_uri(tmp_path: Path, tokenizer: LoadedTokenizer) -> str:
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.parent.mkdir()
    path.write_bytes(tokenizer.content)
    return path.parent.as_uri()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 150 tokens, so that windows lie across their edges."""
    monkeypatch.setattr(shardwriter, "PART_BYTES", 300)
    monkeypatch.setattr("skywork_trainer.prepare.pipeline.PART_BYTES", 300)


@pytest.fixture
def prepare(tmp_path: Path, tokenizer_uri: str) -> Prepare:
    def prepare(name: str, texts: list[str] = TEXTS, shard_tokens: int = 1500) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        uri = (tmp_path / name).as_uri()
        options = Preparation(inputs=(str(path),), output=uri, tokenizer_uri=tokenizer_uri, shard_tokens=shard_tokens)
        prepare_source(options, say=lambda line: None)
        return uri

    return prepare


@pytest.fixture
def configure(tokenizer_uri: str) -> Configure:
    def configure(
        sources: dict[str, str], stages: list[dict[str, object]], *, stage: str | None = None, **changes: object
    ) -> RunConfig:
        return RunConfig.model_validate(
            {
                "run": "demo",
                "namespace": "default",
                "incarnation": 1,
                "stage": stage or stages[-1]["name"],
                "model": {"layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "ffn": 8, "vocab_size": 400},
                "tokenizer_uri": tokenizer_uri,
                "sequence_length": 16,
                "global_batch_sequences": 12,
                "sources": [{"name": name, "uri": uri} for name, uri in sources.items()],
                "stages": [{"learning_rate": {"schedule": "Constant", "peak": 1e-3}} | stage for stage in stages],
                "validation": {"every_tokens": 1000, "windows": 6},
                "checkpoints": {"uri": "file:///unused"},
            }
            | changes
        )

    return configure
