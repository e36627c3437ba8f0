"""How the sequences of a step are dealt to the ranks of any world: the one place that says so."""

from skywork_trainer.config import RunConfig


def step_sequences(step: int, config: RunConfig) -> range:
    """Return the sequences of step `step`, whatever the world."""
    return range(step * config.global_batch_sequences, (step + 1) * config.global_batch_sequences)


def rank_sequences(step: int, rank: int, world: int, config: RunConfig) -> range:
    """Return what rank `rank` of `world` reads for a step: neighbours, so that a node fetches few parts of shards.

    Ranks differ by one sequence where the world does not divide the batch.
    """
    batch = config.global_batch_sequences
    return step_sequences(step, config)[rank * batch // world : (rank + 1) * batch // world]


def micro_batches(config: RunConfig, world: int) -> int:
    """Return how many micro-batches every rank runs per step, the last ones padded where the batch does not divide."""
    most = -(-config.global_batch_sequences // world)
    return -(-most // config.engine.micro_batch_sequences)
