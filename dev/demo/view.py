"""The demo's live view: one line that is redrawn on a terminal, and a line now and then in a log."""

import sys
import time
from typing import Any

from dev.demo.report import Curves

_LOG_EVERY_SECONDS = 10.0


class View:
    """Prints where the run stands, and headlines above it."""

    def __init__(self) -> None:
        self.curves = Curves()
        self._started = time.monotonic()
        self._last = 0.0
        self._terminal = sys.stdout.isatty()
        self._drawn = False

    def elapsed_seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started

    def headline(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(f"[{self.elapsed_seconds():5.0f} s] {text}", flush=True)

    def show(self, run: dict[str, Any]) -> None:
        """Redraw the run's line from its status."""
        self.curves.note(run)
        now = time.monotonic()
        if now - self._last < (0.5 if self._terminal else _LOG_EVERY_SECONDS):
            return
        self._last = now
        line = describe(run.get("status", {}))
        if self._terminal:
            self._clear()
            print(f"[{self.elapsed_seconds():5.0f} s] {line}", end="", flush=True)
            self._drawn = True
        else:
            self.headline(line)

    def _clear(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="")
            self._drawn = False


def describe(status: dict[str, Any]) -> str:
    """One line about a run's status."""
    percent = int((status.get("progress") or "0%").rstrip("%") or 0)
    bar = "█" * (percent // 5) + "░" * (20 - percent // 5)
    nodes = status.get("nodes", {})
    losses = "  ".join(f"{v['domain']} {float(v['loss']):.2f}" for v in status.get("validationLoss", []))
    return (
        f"{status.get('state') or 'Waiting':<10} {status.get('stage', ''):<8} {bar} {percent:3d}%  "
        f"step {status.get('step', 0):<4} loss {float(status.get('trainLoss') or 'nan'):.3f}  "
        f"{status.get('tokensPerSecond', 0):>6} tok/s  nodes {nodes.get('training', 0)}/{nodes.get('desired', 0)}  "
        f"gen {status.get('generation', 0)}  {losses}"
    )
