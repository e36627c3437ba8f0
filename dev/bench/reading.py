"""Tokens a second of one process, from disk and from S3, and the share of a step that waits for its data."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skywork_trainer.config import RunConfig
from skywork_trainer.data.stream import SequenceStream
from skywork_trainer.storage import open_store

from dev.bench.environment import PEERS, measured, peer_python, s3_server
from dev.bench.figures import Figure, Goal, say, tell
from dev.bench.order import PEER
from dev.bench.shards import random_source, run_config

_LENGTH = 2048
_SHARDS, _SHARD_TOKENS = 8, 1 << 24
# Skywork-13B on an A800 (report, section 3.5): what one GPU, and so one worker process, reads.
_TOKENS_PER_SECOND = 1873
_STEP_SEQUENCES = 4


def measure(folder: Path, *, quick: bool) -> None:
    """Print reading speeds and the share of time that waits for data."""
    shards = 2 if quick else _SHARDS
    source = folder / "reading"
    random_source(source, shards=shards, shard_tokens=_SHARD_TOKENS)
    _from_disk(folder, source, seconds=2.0 if quick else 5.0)
    with s3_server(folder / "server") as variables, _environment(variables):
        _upload(source)
        _from_s3(folder, shards)
        for times in (1, 100):
            _stall(folder, shards, times=times, seconds=8.0 if quick else 25.0)


def _from_disk(folder: Path, source: Path, *, seconds: float) -> None:
    config = _config(folder, source.as_uri(), _SHARD_TOKENS)
    stream = SequenceStream(config, folder / "cache-disk")
    _read_for(stream, seconds, start=0)  # brings every part into the cache
    rates = [_read_for(stream, seconds, start=0) for _ in range(3)]
    stream.close()
    python = peer_python("streaming", "mosaicml-streaming==0.13.0", "torch==2.12.*", "numpy<3", "setuptools<81")
    theirs: list[float] = []
    if python is not None:
        if not (folder / "real").exists():
            subprocess.run(
                [python, PEERS / "streaming_start.py", "make", folder], check=True, stderr=subprocess.DEVNULL
            )
        command = [str(python), str(PEERS / "streaming_start.py"), "read", str(folder), str(seconds)]
        theirs = [measured(command)["tokens_per_second"] for _ in range(3)]
    tell(
        Figure(
            figure="read.disk", unit="tokens/s", values=rates, less_is_better=False,
            peer=PEER if theirs else f"{PEER}: not installed", peer_values=theirs,
        )
    )  # fmt: skip


def _from_s3(folder: Path, shards: int) -> None:
    rates = []
    for attempt in range(3):
        stream = _stream(folder, f"cache-s3-{attempt}")
        total = min(len(next(iter(stream.sources.values())).windows), shards * 4000) // 8
        begun = time.monotonic()
        for step in range(total):
            stream.advance(step, lambda step: range(step * 8, step * 8 + 8))
            for sequence in range(step * 8, step * 8 + 8):
                stream.read(sequence)
        rates.append(total * 8 * _LENGTH / (time.monotonic() - begun))
        stream.close()
    tell(Figure(figure="read.s3_cold_cache", unit="tokens/s", values=rates, less_is_better=False))


def _stall(folder: Path, shards: int, *, times: int, seconds: float) -> None:
    """Read at the pace of training from an empty cache; the first step, which starts with nothing, counts too."""
    say(f"reading at {times} times the pace of the 13 B model, from S3, with an empty cache")
    stream = _stream(folder, f"cache-stall-{times}")
    pace = _STEP_SEQUENCES * _LENGTH / (_TOKENS_PER_SECOND * times)
    begun, waited, first = time.monotonic(), 0.0, 0.0
    step = 0
    while time.monotonic() - begun < seconds:
        stream.advance(step, lambda step: range(step * _STEP_SEQUENCES, (step + 1) * _STEP_SEQUENCES))
        asked = time.monotonic()
        for sequence in range(step * _STEP_SEQUENCES, (step + 1) * _STEP_SEQUENCES):
            stream.read(sequence)
        waited += time.monotonic() - asked
        first = first or waited
        time.sleep(pace)  # stands for the computing of a step
        step += 1
    stream.close()
    whole = time.monotonic() - begun
    goal = Goal(of="value", at_most=0.01) if times == 1 else None
    tell(Figure(figure=f"stall.{times}x", unit="share of time", values=[waited / whole], goal=goal))
    later = (waited - first) / (whole - first)
    tell(Figure(figure=f"stall.{times}x.after_the_first_step", unit="share of time", values=[later], goal=goal))


def _read_for(stream: SequenceStream, seconds: float, *, start: int) -> float:
    count, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        stream.read(start + count)
        count += 1
    return count * _LENGTH / (time.monotonic() - begun)


def _stream(folder: Path, cache: str) -> SequenceStream:
    return SequenceStream(_config(folder, "s3://bench/source", _SHARD_TOKENS), folder / cache)


def _config(folder: Path, uri: str, shard_tokens: int) -> RunConfig:
    return run_config(folder / "tokenizer", uri, sequences=1 << 20, length=_LENGTH)


def _upload(source: Path) -> None:
    import boto3

    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1").create_bucket(
        Bucket="bench"
    )
    store = open_store("s3://bench/source")
    for path in sorted(source.iterdir()):
        store.upload(path, path.name)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
