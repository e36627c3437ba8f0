"""Perplexities, and the average over held-out domains as the Skywork-13B report takes it. Pure."""

import math
from collections.abc import Iterable


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss in nats; infinite where that is larger than a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def average_loss(losses: Iterable[float]) -> float:
    """Return the mean of the domains' losses, each domain weighing the same; not a number without any.

    This is how the report's Table 6 averages: the mean of the log perplexities, whatever the sizes of the domains.
    """
    known = tuple(losses)
    return sum(known) / len(known) if known else math.nan


def average_perplexity(losses: Iterable[float]) -> float:
    """Return exp of the mean of the domains' log perplexities: the column Average of the report's Table 6."""
    return perplexity(average_loss(losses))
