"""What an agent tells Prometheus: its workers, and what its pod uses of the node."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from skywork_trainer.agent.cgroup import memory_use_bytes
from skywork_trainer.families import Families

GAUGES = {
    "skywork_agent_generation": ("Newest generation started here.",),
    "skywork_agent_workers": ("Workers that run.",),
    "skywork_agent_fork_server_warm_seconds": ("Time until workers could be forked.",),
    "skywork_agent_last_start_seconds": (
        "From reading a membership to its workers running, the end of the ones before included.",
    ),
    "skywork_agent_longest_silence_seconds": ("Time since the oldest of the workers' newest signs of progress.",),
    "skywork_agent_memory_bytes": ("Memory that the pod uses, as its limit counts it.",),
    "skywork_agent_memory_limit_bytes": ("Memory that the pod may use; absent without a limit.",),
    "skywork_agent_cache_size_bytes": ("Size of the file system that holds the cache of shards.",),
    "skywork_agent_cache_free_bytes": ("What is free on it.",),
}
COUNTERS = {
    "skywork_agent_worker_exits": ("Workers that ended, by reason.", "reason"),
    "skywork_agent_hangs": ("Generations given up for lack of progress, by section.", "section"),
    "skywork_agent_cpu_seconds": ("Processor time of the agent and of its workers, those that have ended included.",),
}


class NodeMetrics:
    """The families of one agent."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._families = self._labelled({"namespace": "", "run": "", "stage": ""})

    def label(self, labels: Mapping[str, str]) -> None:
        """Name the run, once it is known; the node's name comes from the environment, or is this machine's."""
        self._families = self._labelled(labels)

    def set(self, name: str, value: float) -> None:
        """Set skywork_agent_`name`."""
        self._families.set(f"skywork_agent_{name}", value)

    def exited(self, reason: str) -> None:
        """Count a worker that ended."""
        self._families.add("skywork_agent_worker_exits", reason=reason)

    def hung(self, section: str) -> None:
        """Count a generation that was given up."""
        self._families.add("skywork_agent_hangs", section=section)

    def exposition(self, alive: Mapping[int, int]) -> str:
        """Return all of it as Prometheus reads it; memory and processor time are looked up now.

        `alive` are the pids of the workers.
        """
        self._look_at_memory()
        self._look_at_cache()
        self._families.raise_to("skywork_agent_cpu_seconds", _cpu_seconds(alive.values()))
        return self._families.exposition().decode()

    @staticmethod
    def _labelled(labels: Mapping[str, str]) -> Families:
        node = os.environ.get("NODE_NAME") or socket.gethostname()
        return Families({**labels, "node": node}, gauges=GAUGES, counters=COUNTERS)

    def _look_at_memory(self) -> None:
        used, limit = memory_use_bytes()
        if used is not None:
            self.set("memory_bytes", used)
        if limit is not None:
            self.set("memory_limit_bytes", limit)

    def _look_at_cache(self) -> None:
        with contextlib.suppress(OSError):
            found = os.statvfs(self._cache_dir)
            self.set("cache_size_bytes", found.f_blocks * found.f_frsize)
            self.set("cache_free_bytes", found.f_bavail * found.f_frsize)


def _cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of this process, of its children that have ended, and of those that run."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            # Behind the name, which may hold spaces: fields 14 and 15 of proc(5) are user and system time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
