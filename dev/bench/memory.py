"""What this process holds in memory, as the kernel counts it."""

from pathlib import Path


def resident_mib() -> float:
    """Return the resident memory now."""
    return _field("VmRSS")


def peak_mib() -> float:
    """Return the most resident memory that there ever was."""
    return _field("VmHWM")


def _field(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024
