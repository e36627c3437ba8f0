"""How long a process needs from an index to its first batch, anywhere in the run, and what it holds for that."""

from collections.abc import Iterator
from pathlib import Path

from dev.bench.environment import PeerEnvironment, ours
from dev.bench.figures import Figure, Goal, Peer, say
from dev.bench.shards import random_source, sparse_source

PEER = "mosaicml-streaming 0.13.0"
_LENGTH = 2048
_BATCH = 8
_SHARD_SEQUENCES = 16000
_MOST_SHARDS = 5000
_RUN_TOKENS = 3 * 10**12
_MOST_FOR_THE_PEER = 10**8
_LONG = 8
"""Power of ten from which the peer takes so long that once must do."""


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield the figures of starting and resuming at 10^5 to 10^9 sequences, and in a source of 3 T tokens."""
    peer = PeerEnvironment("streaming", "mds.py")
    if not peer.missing:
        say("writing the peer's shards")
        random_source(folder / "real", shards=1, shard_tokens=_SHARD_SEQUENCES * _LENGTH + 1)
        peer.run("make", folder / "mds", _LENGTH, folder / "real/shard-00000.bin")
    for exponent in (6,) if quick else (5, 6, 7, 8, 9):
        yield from _beside_the_peer(folder, exponent, peer, turns=1 if quick or exponent >= _LONG else 3)
    yield from _at_scale(folder, repeats=3 if quick else 7)


def _beside_the_peer(folder: Path, exponent: int, peer: PeerEnvironment, *, turns: int) -> Iterator[Figure]:
    """From constructing the stream to a batch of 8 in hand, in a fresh process: at the beginning, and half-way."""
    size = 10**exponent
    shards = max(min(size // _SHARD_SEQUENCES, _MOST_SHARDS), 1)
    half = size // 2 // _BATCH * _BATCH
    source = _Source(folder / f"1e{exponent}", shards, -(-size // shards) * _LENGTH + 1, [0, half])
    missing = peer.missing
    if size > _MOST_FOR_THE_PEER:
        missing = f"not run beyond 10^{len(str(_MOST_FOR_THE_PEER)) - 1}: time and memory grow with the sequences"
    for name, position in (("start", 0), ("resume", half)):
        say(f"10^{exponent} sequences, {name}")
        source.first_batch(position)  # Parts are on the node's disk from then on, as the peer's shards are.
        mine, theirs = [], []
        for _ in range(turns):
            # One turn is all that there is time for at 10^8: ours is repeated before and after it all the same.
            mine += [source.first_batch(position) for _ in range(3 if turns == 1 else 1)]
            theirs += [] if missing else [peer.run("first", folder, size, position)]
            mine += [source.first_batch(position) for _ in range(3 if turns == 1 else 0)]
        yield from _compared(f"order.1e{exponent}.{name}", mine, theirs, missing, exponent)


def _compared(
    name: str, mine: list[dict[str, float]], theirs: list[dict[str, float]], missing: str | None, exponent: int
) -> Iterator[Figure]:
    goal = Goal(of="ratio", at_least=1000) if exponent == 8 else None

    def figure(of: str, unit: str, first: str, second: str | None, goal: Goal | None = None) -> Figure:
        def numbers(taken: list[dict[str, float]]) -> list[float]:
            return [one[first] - (one[second] if second else 0) for one in taken]

        peer = Peer(name=PEER, values=numbers(theirs), missing=missing)
        return Figure(figure=f"{name}.{of}", unit=unit, values=numbers(mine), peer=peer, goal=goal)

    yield figure("seconds", "s", "start_seconds", None, goal)
    yield figure("seconds_beyond_index", "s", "start_seconds", "index_seconds", goal)
    yield figure("peak_memory", "MiB", "peak_mib", None)
    yield figure("memory_beyond_imports", "MiB", "peak_mib", "imported_mib")


def _at_scale(folder: Path, *, repeats: int) -> Iterator[Figure]:
    """Yield what the first batch takes in a source of 3 T tokens in 5,000 shards, wherever the run stands."""
    positions = {"0": 0, "1e6": 10**6, "1e9": 10**9}
    say("writing the index of 3 T tokens")
    source = _Source(folder / "3T", _MOST_SHARDS, _RUN_TOKENS // _MOST_SHARDS, list(positions.values()))
    cold = {name: source.first_batch(position) for name, position in positions.items()}
    # In turns, so that a slow minute of the machine is not taken for the cost of progress.
    warm = [{name: source.first_batch(position) for name, position in positions.items()} for _ in range(repeats)]
    for name, position in positions.items():
        say(f"3 T tokens, sequence {position:,}")
        taken = [turn[name] for turn in warm]
        goals = position == max(positions.values())
        yield Figure(
            figure=f"order.3T.at_{name}.first_batch_beyond_index",
            unit="s",
            values=[t["start_seconds"] - t["index_seconds"] for t in taken],
            goal=Goal(of="value", at_most=0.05) if goals else None,
        )
        yield Figure(
            figure=f"order.3T.at_{name}.first_batch_beyond_index_parts_not_cached",
            unit="s",
            values=[cold[name]["start_seconds"] - cold[name]["index_seconds"]],
        )
        yield Figure(figure=f"order.3T.at_{name}.index", unit="s", values=[t["index_seconds"] for t in taken])
        yield Figure(figure=f"order.3T.at_{name}.imports", unit="s", values=[t["import_seconds"] for t in taken])
        yield Figure(figure=f"order.3T.at_{name}.peak_memory", unit="MiB", values=[t["peak_mib"] for t in taken])
        yield Figure(
            figure=f"order.3T.at_{name}.memory_beyond_python_and_numpy",
            unit="MiB",
            values=[t["peak_mib"] - t["python_mib"] for t in taken],
            goal=Goal(of="value", at_most=100) if goals else None,
        )


class _Source:
    """A source of which only the parts at some positions exist, and the cache of the node that reads it."""

    def __init__(self, folder: Path, shards: int, shard_tokens: int, starts: list[int]) -> None:
        positions = [start + number for start in starts for number in range(_BATCH)]
        config = sparse_source(folder, shards=shards, shard_tokens=shard_tokens, length=_LENGTH, positions=positions)
        self._config, self._cache = folder / "run.json", folder / "cache"
        self._config.write_text(config.model_dump_json())

    def first_batch(self, position: int) -> dict[str, float]:
        """Read a batch in a fresh process."""
        return ours("start", self._config, self._cache, position, _BATCH)
