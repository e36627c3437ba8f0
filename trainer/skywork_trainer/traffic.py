"""What reading its data has cost a worker process so far: counted by the data plane, told by the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Totals of one worker process since it started; several workers of a node add up."""

    fetched_parts: int = 0
    """Parts of shards that came out of the object store, verified."""
    fetched_bytes: int = 0
    cache_hits: int = 0
    """Parts opened that were on the node's disk, brought by any of its workers."""
    cache_misses: int = 0
    hedged: int = 0
    """Requests made because an earlier one for the same part was slow."""
    retried: int = 0
    """Requests for parts that failed or brought something else than the index says."""
    corrupt: int = 0
    """Those of them that brought something else."""
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Requests to the object store, by operation and HTTP status or error; checkpoints included."""
