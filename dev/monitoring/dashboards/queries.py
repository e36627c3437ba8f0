"""Expressions about the one run that is chosen."""

CHOSEN = 'namespace="$namespace",run="$run"'
STAGE = f'{CHOSEN},stage=~"$stage"'
LOSS = "Nats per token of the run's tokenizer."


def of_run(metric: str, *by: str, more: str = "") -> str:
    """What the operator says of the run: there until the run is deleted."""
    labels = f" by ({', '.join(by)}) " if by else ""
    return f"max{labels}(skywork_run_{metric}{{{CHOSEN}{more}}})"


def of_trainer(metric: str, *by: str) -> str:
    """What the pod of rank 0 says: gone with it."""
    labels = f" by ({', '.join(by)}) " if by else ""
    return f"max{labels}(skywork_{metric}{{{STAGE}}})"


def rate(metric: str, *by: str) -> str:
    """How fast a counter of the trainer grows, each second."""
    labels = f" by ({', '.join(by)}) " if by else ""
    return f"sum{labels}(rate(skywork_{metric}{{{STAGE}}}[$__rate_interval]))"


def quantile(metric: str, share: float) -> str:
    """Value that a share of a histogram's observations of late stays below."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', 'le')})"
