"""Sources for benchmarks: real ones of random tokens, and an index of 3 T tokens of which only what is read exists."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from skywork_trainer.config import RunConfig
from skywork_trainer.data.catalog import Catalog
from skywork_trainer.data.shards import DOCUMENTS_FILE, INDEX_FILE, PART_BYTES, Shard, SourceIndex, part_digests

VOCABULARY = 65536
TOKENIZER = b"tokenizer of the benchmarks"
_BYTES = 2


def run_config(folder: Path, source_uri: str, *, sequences: int, length: int, batch: int = 8) -> RunConfig:
    """Return a run of one stage that reads `sequences` sequences of one source."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return RunConfig.model_validate(
        {
            "run": "bench", "namespace": "bench", "incarnation": 1, "stage": "only",
            "model": {"layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "ffn": 8, "vocab_size": VOCABULARY},
            "tokenizer_uri": folder.as_uri(), "sequence_length": length, "global_batch_sequences": batch,
            "sources": [{"name": "main", "uri": source_uri}],
            "stages": [{
                "name": "only", "tokens": sequences // batch * batch * length,
                "learning_rate": {"schedule": "Constant", "peak": 1e-3}, "mixture": [{"source": "main"}],
            }],
            "validation": {"every_tokens": 1 << 60}, "checkpoints": {"uri": "file:///unused"},
        }
    )  # fmt: skip


def random_source(folder: Path, *, shards: int, shard_tokens: int) -> str:
    """Write a source of random tokens; return its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    made = []
    for number in range(shards):
        content = draw.integers(0, VOCABULARY, shard_tokens, dtype=np.uint16).tobytes()
        digests = part_digests(content, PART_BYTES)
        (folder / f"shard-{number:05d}.bin").write_bytes(content)
        (folder / f"shard-{number:05d}.sum").write_bytes(digests)
        made.append(_shard(number, shard_tokens, digests, hashlib.sha256(content).hexdigest()))
    _write_index(folder, made)
    return folder.as_uri()


def sparse_source(folder: Path, *, shards: int, shard_tokens: int, length: int, positions: list[int]) -> RunConfig:
    """Write the index of a source of any size, and the shards as sparse files; return a run over it.

    Parts that the sequences at `positions` lie in differ from each other, so that reading them costs what it costs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = shard_tokens * _BYTES
    zeros = _zero_digests(size)
    _write_index(folder, [_shard(number, shard_tokens, zeros) for number in range(shards)])
    sequences = shards * ((shard_tokens - 1) // length)
    config = run_config(folder / "tokenizer", folder.as_uri(), sequences=sequences, length=length)
    catalog = Catalog(config)
    touched: dict[int, set[int]] = defaultdict(set)
    for position in positions:
        trace = catalog.trace(position)
        first, last = trace.first_token * _BYTES, (trace.first_token + length) * _BYTES
        touched[int(trace.shard[6:11])].update(range(first // PART_BYTES, last // PART_BYTES + 1))
    made = {
        number: _sparse_shard(folder, number, shard_tokens, zeros, sorted(parts)) for number, parts in touched.items()
    }
    _write_index(folder, [made.get(n) or _shard(n, shard_tokens, zeros) for n in range(shards)])
    return config


def _sparse_shard(folder: Path, number: int, shard_tokens: int, zeros: bytes, parts: list[int]) -> Shard:
    size, digests = shard_tokens * _BYTES, bytearray(zeros)
    with (folder / f"shard-{number:05d}.bin").open("wb") as file:
        file.truncate(size)
        for part in parts:
            length = min(PART_BYTES, size - part * PART_BYTES)
            content = np.random.default_rng((number, part)).integers(0, 256, length, dtype=np.uint8).tobytes()
            file.seek(part * PART_BYTES)
            file.write(content)
            digests[32 * part : 32 * part + 32] = hashlib.sha256(content).digest()
    (folder / f"shard-{number:05d}.sum").write_bytes(digests)
    return _shard(number, shard_tokens, bytes(digests))


def _zero_digests(size: int) -> bytes:
    whole = hashlib.sha256(bytes(PART_BYTES)).digest() * (size // PART_BYTES)
    rest = size % PART_BYTES
    return whole + (hashlib.sha256(bytes(rest)).digest() if rest else b"")


def _shard(number: int, tokens: int, digests: bytes, sha256: str = "0" * 64) -> Shard:
    return Shard(
        file=f"shard-{number:05d}.bin", tokens=tokens, documents=1, bytes=tokens * _BYTES, sha256=sha256,
        offsets_sha256="0" * 64, parts_sha256=hashlib.sha256(digests).hexdigest(),
        text_bytes=4 * tokens, text_characters=4 * tokens,
    )  # fmt: skip


def _write_index(folder: Path, shards: list[Shard]) -> None:
    index = SourceIndex(
        dtype="uint16", tokenizer_sha256=hashlib.sha256(TOKENIZER).hexdigest(), vocab_size=VOCABULARY, end_of_text=0,
        part_bytes=PART_BYTES, inputs_sha256="0" * 64, documents_sha256=hashlib.sha256(b"").hexdigest(),
        shards=tuple(shards),
    )  # fmt: skip
    (folder / DOCUMENTS_FILE).write_bytes(b"")
    (folder / INDEX_FILE).write_text(index.sealed().model_dump_json())
