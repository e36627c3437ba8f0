"""How long a process needs from an index to its first batch, anywhere in the run, and what it holds for that."""

import subprocess
import sys
from pathlib import Path

from dev.bench.environment import PEERS, measured, peer_python
from dev.bench.figures import Figure, Goal, say, tell
from dev.bench.shards import sparse_source

_LENGTH = 2048
_BATCH = 8
PEER = "mosaicml-streaming 0.13.0"
_PEER_SHARD_SAMPLES = 16000
_MOST_FOR_THE_PEER = 10**8
_MOST_SHARDS = 5000


def measure(folder: Path, *, quick: bool) -> None:
    """Print the figures of starting and resuming at 10^5 to 10^9 sequences, and in an index of 3 T tokens."""
    sizes = [10**5, 10**6] if quick else [10**5, 10**6, 10**7, 10**8, 10**9]
    python = peer_python("streaming", "mosaicml-streaming==0.13.0", "torch==2.12.*", "numpy<3", "setuptools<81")
    if python is not None:
        say("writing the peer's shards")
        subprocess.run([python, PEERS / "streaming_start.py", "make", folder], check=True, stderr=subprocess.DEVNULL)
    for size in sizes:
        shards = max(min(size // _PEER_SHARD_SAMPLES, _MOST_SHARDS), 1)
        shard_tokens = -(-size // shards) * _LENGTH + 1
        for resume in (False, True):
            position = size // 2 // _BATCH * _BATCH if resume else 0
            say(f"{'resuming' if resume else 'starting'}, {size:.0e} sequences")
            ours = _ours(folder / f"ours-{size}-{position}", shards, shard_tokens, position, repeats=3)
            theirs: list[dict[str, float]] = []
            peer = PEER
            if python is None or size > _MOST_FOR_THE_PEER:
                peer = (
                    f"{PEER}: not measured, {'not installed' if python is None else 'needs more memory than there is'}"
                )
            else:
                command = [
                    str(python),
                    str(PEERS / "streaming_start.py"),
                    "first",
                    str(folder),
                    str(size),
                    str(int(resume)),
                ]
                theirs = [measured(command) for _ in range(1 if size >= 10**8 else 3)]
            _tell(f"order.{'resume' if resume else 'start'}.1e{len(str(size)) - 1}", ours, theirs, peer, size)
    _at_scale(folder, quick=quick)


def _tell(name: str, ours: list[dict[str, float]], theirs: list[dict[str, float]], peer: str, size: int) -> None:
    large = Goal(of="ratio", at_least=1000) if size == 10**8 else None
    tell(
        Figure(
            figure=f"{name}.seconds", unit="s", values=[m["start_seconds"] for m in ours], peer=peer,
            peer_values=[m["start_seconds"] for m in theirs], goal=large,
        )
    )  # fmt: skip
    tell(
        Figure(
            figure=f"{name}.peak_memory", unit="MiB", values=[m["peak_mib"] for m in ours], peer=peer,
            peer_values=[m["peak_mib"] for m in theirs],
        )
    )  # fmt: skip


def _at_scale(folder: Path, *, quick: bool) -> None:
    """3 T tokens in 5,000 shards: the first batch beyond importing and reading the index, wherever the run stands."""
    shard_tokens = 3 * 10**12 // _MOST_SHARDS
    for position in (0, 10**9) if quick else (0, 10**6, 10**9):
        name = f"order.3T.at_1e{len(str(position)) - 1 if position else 0}" if position else "order.3T.at_0"
        say(f"3 T tokens in 5,000 shards, sequence {position}")
        ours = _ours(folder / f"scale-{position}", _MOST_SHARDS, shard_tokens, position, repeats=3 if quick else 7)
        far = position == 10**9
        beyond = [m["start_seconds"] - m["index_seconds"] for m in ours]
        tell(
            Figure(
                figure=f"{name}.first_batch_beyond_index",
                unit="s",
                values=beyond,
                goal=Goal(of="value", at_most=0.05) if far else None,
            )
        )
        tell(Figure(figure=f"{name}.index", unit="s", values=[m["index_seconds"] for m in ours]))
        held = [m["peak_mib"] - m["imported_mib"] for m in ours]
        tell(
            Figure(
                figure=f"{name}.memory_beyond_import",
                unit="MiB",
                values=held,
                goal=Goal(of="value", at_most=100) if far else None,
            )
        )
        tell(Figure(figure=f"{name}.peak_memory", unit="MiB", values=[m["peak_mib"] for m in ours]))


def _ours(folder: Path, shards: int, shard_tokens: int, position: int, *, repeats: int) -> list[dict[str, float]]:
    batch = range(position, position + _BATCH)
    config = sparse_source(folder, shards=shards, shard_tokens=shard_tokens, length=_LENGTH, positions=list(batch))
    path = folder / "run.json"
    path.write_text(config.model_dump_json())
    # The first one fills the node's cache, as the run that is resumed has done.
    return [_start(path, folder / "cache", batch) for _ in range(repeats + 1)][1:]


def _start(path: Path, cache: Path, batch: range) -> dict[str, float]:
    return measured([sys.executable, "-m", "dev.bench.start", str(path), str(cache), str(batch.start), str(len(batch))])
