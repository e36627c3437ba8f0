"""Waiting on conditions: tests never sleep for a time that is hoped to be enough."""

import time
from collections.abc import Callable
from typing import Any


def until(what: Callable[[], Any], seconds: float = 180, pause_seconds: float = 0.3) -> Any:
    """First true value of `what`; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true within {seconds:.0f} s: {what}"
        time.sleep(pause_seconds)
