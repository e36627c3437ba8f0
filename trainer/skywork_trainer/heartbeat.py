"""A worker's sign of progress: one small record in a file that it overwrites in place and its agent reads.

Writing costs a few microseconds, so that every step and every batch of a validation can. Times are the machine's
monotonic clock, which both processes share.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from skywork_trainer.control import Section

_RECORD_BYTES = 64


@dataclass(frozen=True)
class Beat:
    """The newest sign."""

    section: Section
    time: float
    """Monotonic seconds."""
    step: int
    """Step that is being trained, or comes next."""
    forward_seconds: float = 0.0
    """What the forward passes of a step take here, lately; 0 while that is not known."""


class Heartbeat:
    """Writes one worker's record."""

    def __init__(self, folder: Path, local_rank: int) -> None:
        self._fd = os.open(beat_path(folder, local_rank), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)

    def beat(self, section: Section, step: int, forward_seconds: float = 0.0) -> None:
        """Say that there is progress."""
        text = f"{section} {time.monotonic():.3f} {step} {forward_seconds:.6g}"
        os.pwrite(self._fd, text.ljust(_RECORD_BYTES - 1).encode() + b"\n", 0)


def beat_path(folder: Path, local_rank: int) -> Path:
    """Return where a worker's record is."""
    return folder / f"heartbeat-{local_rank}"


def read_beat(folder: Path, local_rank: int) -> Beat | None:
    """Return a worker's newest record; None before its first, and for one that is just being written."""
    try:
        section, moment, step, forward = beat_path(folder, local_rank).read_text().split()
        return Beat(Section(section), float(moment), int(step), float(forward))
    except (OSError, ValueError):
        return None
