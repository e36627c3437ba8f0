"""How often the kernel has killed a process of this container for memory."""

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
