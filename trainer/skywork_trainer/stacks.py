"""Where a worker writes its stacks, and the signal that asks for them: agreed between agent and worker."""

import signal
from pathlib import Path

STACK_SIGNAL = signal.SIGUSR1


def stack_path(folder: Path, local_rank: int) -> Path:
    """Return the file that a worker appends its stacks to when it gets STACK_SIGNAL."""
    return folder / f"stacks-{local_rank}.txt"
