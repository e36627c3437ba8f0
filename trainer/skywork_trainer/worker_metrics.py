"""What one worker process costs its node: data, time, memory. Counters start anew with the process."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from skywork_trainer.families import Families
from skywork_trainer.traffic import Traffic

GAUGES = {
    "skywork_worker_forward_seconds": ("What the forward passes of a step take on this worker, lately.",),
    "skywork_worker_resident_memory_bytes": ("Memory of the node that this worker holds.",),
    "skywork_worker_device_memory_bytes": ("Memory of its GPU that this worker has reserved; on GPUs only.",),
    "skywork_worker_device_memory_limit_bytes": ("Memory that its GPU has; on GPUs only.",),
}
COUNTERS = {
    "skywork_data_wait_seconds": ("Time this worker waited for its sequences.",),
    "skywork_storage_requests": ("Requests to the object store, every attempt.", "operation", "code"),
    "skywork_data_fetched_parts": ("Parts of shards fetched and verified.",),
    "skywork_data_fetched_bytes": ("Bytes of those parts.",),
    "skywork_data_cache_hits": ("Parts found on the node's disk.",),
    "skywork_data_cache_misses": ("Parts that had to be waited for.",),
    "skywork_data_hedged_requests": ("Requests made because an earlier one was slow.",),
    "skywork_data_failed_requests": ("Requests for parts that failed or came wrong.",),
    "skywork_data_corrupt_answers": ("Parts that came with another SHA-256.",),
}
_OF_TRAFFIC = {
    "skywork_data_fetched_parts": "fetched_parts",
    "skywork_data_fetched_bytes": "fetched_bytes",
    "skywork_data_cache_hits": "cache_hits",
    "skywork_data_cache_misses": "cache_misses",
    "skywork_data_hedged_requests": "hedged",
    "skywork_data_failed_requests": "retried",
    "skywork_data_corrupt_answers": "corrupt",
}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerMetrics:
    """The families of one worker."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._families = Families(labels, gauges=GAUGES, counters=COUNTERS)

    def read(self, waited_seconds: float, traffic: Traffic) -> None:
        """Count what its reading has cost so far, the newest wait included."""
        self._families.add("skywork_data_wait_seconds", waited_seconds)
        for name, field in _OF_TRAFFIC.items():
            self._families.raise_to(name, getattr(traffic, field))
        for (operation, code), count in traffic.requests.items():
            self._families.raise_to("skywork_storage_requests", count, operation=operation, code=code)

    def computed(self, forward_seconds: float) -> None:
        """Show what the forward passes of a step take."""
        self._families.set("skywork_worker_forward_seconds", forward_seconds)

    def exposition(self) -> bytes:
        """Return all of it as Prometheus reads it; memory is looked up now."""
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._families.set("skywork_worker_resident_memory_bytes", resident_pages * _PAGE_BYTES)
        self._look_at_device()
        return self._families.exposition()

    def _look_at_device(self) -> None:
        torch = sys.modules.get("torch")
        # Not imported, and CUDA not begun for this: a worker that has done neither has nothing to tell.
        if torch is None or not torch.cuda.is_initialized():
            return
        device = torch.cuda.current_device()
        self._families.set("skywork_worker_device_memory_bytes", torch.cuda.memory_reserved(device))
        limit = torch.cuda.get_device_properties(device).total_memory
        self._families.set("skywork_worker_device_memory_limit_bytes", limit)
