"""Memory as the kernel counts it for this container: what is used, and how often a process was killed for it."""

from pathlib import Path

_FILES = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


def memory_kills(files: tuple[Path, ...] = _FILES) -> int | None:
    """Return the count, of cgroup v2 or v1; None where neither can be read."""
    for path in files:
        try:
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None


_MEMORY = (
    (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.max")),
    (Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
)
_NO_LIMIT = 1 << 60
"""What cgroup v1 says where there is none is larger."""


def memory_use_bytes(files: tuple[tuple[Path, Path], ...] = _MEMORY) -> tuple[int | None, int | None]:
    """Return what this container uses and may use, of cgroup v2 or v1; None for what is not known or not limited."""
    for used, limit in files:
        try:
            most = limit.read_text().strip()
            return int(used.read_text()), int(most) if most != "max" and int(most) < _NO_LIMIT else None
        except (OSError, ValueError):
            continue
    return None, None
