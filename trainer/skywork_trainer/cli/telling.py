"""How the tools speak to a person: progress, tables, and errors without a traceback."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from skywork_trainer.config import EXIT_CONFIG
from skywork_trainer.storage import StorageError

Command = Callable[[argparse.Namespace], int]
_SECONDS_BETWEEN_LINES = 5.0


def guarded(command: Command) -> Command:
    """Return the command with known errors told on stderr and turned into the exit codes of `cli.checkpoints`."""

    def run(arguments: argparse.Namespace) -> int:
        # Imported late: `--help` must not wait for torch.
        from skywork_trainer.checkpoint import CheckpointCorrupt
        from skywork_trainer.checkpoint.describe import NoSuchCheckpoint
        from skywork_trainer.data.errors import DataError
        from skywork_trainer.exchange import ExportRefused, WeightsError

        try:
            return command(arguments)
        except (StorageError, DataError, WeightsError) as error:
            print(f"{error.reason}: {error.message}", file=sys.stderr)
            impossible = isinstance(error, DataError | WeightsError) or error.reason == "InvalidUri"
            return EXIT_CONFIG if impossible else 1
        except CheckpointCorrupt as error:
            print(f"CheckpointCorrupt: {error}", file=sys.stderr)
            return 1
        except (NoSuchCheckpoint, ExportRefused) as error:
            print(error, file=sys.stderr)
            return EXIT_CONFIG

    return run


def needing(extra: str, modules: frozenset[str], command: Command) -> Command:
    """Return the command with a word about the extra to install where one of its modules is missing."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in modules:
                raise
            print(f"{error.name} is not installed: pip install 'skywork[{extra}]'", file=sys.stderr)
            return EXIT_CONFIG

    return run


class Progress:
    """Prints how far something is to stderr, every five seconds and no oftener; `unit` is bytes or elements."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` is done."""
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        rate = done / (now - self._began)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        print(
            f"{self._what}: {done:,} of {total:,} {self._unit} ({done / max(total, 1):.0%}){left}",
            file=sys.stderr,
            flush=True,
        )


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns; a name that is the one above it is left out."""
    width, before = max((len(name) for name, _ in rows), default=0), ""
    for name, value in rows:
        print(f"{'' if name == before else name:<{width}}  {value}")
        before = name
