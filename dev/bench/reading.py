"""Tokens a second of one process, from the node's disk and from S3, beside the same tokens read by the peer."""

from collections.abc import Callable, Iterator
from pathlib import Path

from dev.bench.environment import PeerEnvironment, ours, s3_server
from dev.bench.figures import Figure, Peer, say
from dev.bench.order import PEER
from dev.bench.shards import random_source, run_config

_LENGTH = 2048
_SHARD_TOKENS = (1 << 24) + 1
_BATCH = 8


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield reading speeds; every process opens the source, reads all of it once and ends."""
    shards, repeats = (1, 1) if quick else (4, 3)
    peer = PeerEnvironment("streaming", "mds.py")
    buckets = folder / "server/s3/buckets"
    source = buckets / "bench/source"
    say("writing tokens")
    random_source(source, shards=shards, shard_tokens=_SHARD_TOKENS)
    if not peer.missing:
        peer.run("make", buckets / "bench/mds", _LENGTH, *sorted(source.glob("*.bin")))
    turns = _Turns(folder, shards * (_SHARD_TOKENS - 1) // _LENGTH, peer)
    turns.read(source.as_uri(), "cache", buckets / "bench/mds", None, {})  # fills our cache, and the kernel's
    yield turns.figure(
        "read.disk",
        repeats,
        lambda _: turns.read(source.as_uri(), "cache", buckets / "bench/mds", None, {}),
    )
    with s3_server(folder / "server") as variables:
        yield turns.figure(
            "read.s3_nothing_cached",
            repeats,
            lambda turn: turns.read(
                "s3://bench/source", f"cache-{turn}", folder / f"peer-{turn}", "s3://bench/mds", variables
            ),
        )


class _Turns:
    """Ours and the peer, one after the other."""

    def __init__(self, folder: Path, sequences: int, peer: PeerEnvironment) -> None:
        self._folder, self._sequences, self._peer = folder, sequences, peer

    def read(
        self, uri: str, cache: str, local: Path, remote: str | None, environment: dict[str, str]
    ) -> tuple[float, float | None]:
        """Return tokens a second of ours, and of the peer."""
        config = self._folder / "run.json"
        run = run_config(self._folder / "tokenizer", uri, sequences=self._sequences, length=_LENGTH, batch=_BATCH)
        config.write_text(run.model_dump_json())
        steps = self._sequences // _BATCH
        mine = ours("read_once", config, self._folder / cache, 0, steps, 0, **environment)
        if self._peer.missing:
            return mine["tokens_per_second"], None
        theirs = self._peer.run("read", local, _LENGTH, *([remote] if remote else []), environment=environment)
        if (mine["tokens"], mine["checksum"]) != (theirs["tokens"], theirs["checksum"]):
            raise RuntimeError(f"not the same tokens: {mine}, {theirs}")
        return mine["tokens_per_second"], theirs["tokens_per_second"]

    def figure(self, name: str, repeats: int, turn: Callable[[int], tuple[float, float | None]]) -> Figure:
        """Return a figure of so many turns."""
        taken = []
        for number in range(repeats):
            say(f"{name}, {number + 1} of {repeats}")
            taken.append(turn(number))
        return Figure(
            figure=name,
            unit="tokens/s",
            values=[mine for mine, _ in taken],
            less_is_better=False,
            peer=Peer(name=PEER, values=[t for _, t in taken if t is not None], missing=self._peer.missing),
        )
