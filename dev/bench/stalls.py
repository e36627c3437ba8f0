"""The share of a step that waits for its data, at the pace of a 13 B model on a node of eight GPUs.

Skywork-13B trained 1,873 tokens a second and A800 (technical report, section 3.5), so a node reads 15 k tokens/s. One
process reads all of them here, where eight would share the work; their tokens come from a source of 3 T tokens in S3,
and nothing of it is cached. A step has 8 sequences of 4,096 tokens where the report's has 64 a node, so that looking
16 steps ahead reaches an eighth as far.
"""

from collections.abc import Iterator
from pathlib import Path

from dev.bench.environment import ours, s3_server
from dev.bench.figures import Figure, Goal, say
from dev.bench.shards import run_config, sparse_source

_LENGTH = 4096
_BATCH = 8
_GPUS = 8
_TOKENS_PER_SECOND_AND_GPU = 1873
_SHARDS, _SHARD_TOKENS = 5000, 600_000_000
_FIRST_STEP = 28
"""Four steps before the order's first block of 256 sequences ends: a change of shards lies in the shortest run."""


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield the shares at the pace of training and at a hundred times that."""
    seconds = {1: 12, 100: 4} if quick else {1: 40, 100: 20}
    steps = {times: max(round(seconds[times] / _compute_seconds(times)), 2) for times in seconds}
    source = folder / "server/s3/buckets/bench/source"
    first, last = _FIRST_STEP * _BATCH, (_FIRST_STEP + max(steps.values()) + 1) * _BATCH
    say(f"writing what {last - first:,} sequences of 3 T tokens lie in")
    positions = list(range(first, last))
    sparse_source(source, shards=_SHARDS, shard_tokens=_SHARD_TOKENS, length=_LENGTH, positions=positions)
    sequences = _SHARDS * ((_SHARD_TOKENS - 1) // _LENGTH)
    run = run_config(folder / "tokenizer", "s3://bench/source", sequences=sequences, length=_LENGTH, batch=_BATCH)
    config = folder / "run.json"
    config.write_text(run.model_dump_json())
    with s3_server(folder / "server") as variables:
        for times in seconds:
            say(f"reading at {times} times the pace of training for {seconds[times]} s")
            rest = (_FIRST_STEP, steps[times], _compute_seconds(times))
            cold = ours("read_once", config, folder / f"cache-{times}", *rest, **variables)
            yield from _figures(times, cold)
        warm = ours("read_once", config, folder / f"cache-{times}", *rest, **variables)
        yield Figure(figure=f"stall.{times}x_all_cached", unit="share of time", values=[_share(warm)])


def _figures(times: int, taken: dict[str, float]) -> Iterator[Figure]:
    name = f"stall.{times}x"
    goal = Goal(of="value", at_most=0.01) if times == 1 else None
    yield Figure(figure=name, unit="share of time", values=[_share(taken)], goal=goal)
    yield Figure(figure=f"{name}.longest_wait", unit="s", values=[taken["longest_later_seconds"]])
    yield Figure(figure=f"{name}.first_step", unit="s", values=[taken["first_step_seconds"]])
    yield Figure(figure=f"{name}.fetched", unit="MB", values=[taken["fetched_bytes"] / 1e6])


def _share(taken: dict[str, float]) -> float:
    """The first step waits for the first parts, once in a run; it is a figure of its own."""
    return taken["later_waited_seconds"] / taken["later_seconds"]


def _compute_seconds(times: int) -> float:
    return _BATCH * _LENGTH / (_GPUS * _TOKENS_PER_SECOND_AND_GPU * times)
